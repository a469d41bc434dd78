"""The two proofs that stand for themselves, as text.

An inclusion proof shows one event of a log without the others, in C2SP's `tlog-proof
<https://c2sp.org/tlog-proof>`_; a consistency proof shows that a log went on from an earlier
checkpoint without changing what that counts::

    c2sp.org/tlog-proof@v1              esper/consistency-proof@v1
    extra SIGNER || EVENT               extra SIGNER
    index INDEX                         old SIZE
    HASH ...                            HASH ...

    CHECKPOINT                          CHECKPOINT

SIGNER is the key under which the checkpoint is signed: as a signed note writes it (a byte for the
algorithm, 1, and the 32 bytes of an Ed25519 key), or, where a root key vouches for it, a byte 2,
and behind its length (2 bytes, big-endian) the root's certificate for it, as
`esper_events.certificate` encodes it. EVENT is the exact bytes of the event, which are the
leaf. Binary fields are base64, each HASH (32 bytes) has a line of its own, and CHECKPOINT is as in
`esper_events.checkpoint`. From its third line on a consistency proof is what a C2SP witness takes.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esper_events.certificate import Certificate, decode_certificate, encode_certificate
from esper_events.checkpoint import SignedCheckpoint, parse_checkpoint
from esper_events.codec import MAX_EVENT_BYTES
from esper_events.errors import (
    CertificateError,
    CheckpointError,
    ProofError,
    PublicKeyError,
    TextError,
)
from esper_events.keys import ALGORITHM, PublicKey
from esper_events.lines import binary, number, shown, split

MAX_PROOF_BYTES = 2 * MAX_EVENT_BYTES
"""Largest proof, in bytes; longer input is refused before it is looked at."""
MAX_HASHES = 64
"""Longest path: that of a tree of 2**63 leaves."""

_INCLUSION = "c2sp.org/tlog-proof@v1"
_CONSISTENCY = "esper/consistency-proof@v1"
_BEGINNINGS = tuple(f"{name.partition('@')[0]}@".encode() for name in (_INCLUSION, _CONSISTENCY))
_KEY_BYTES = 33
_CERTIFIED = 0x02
_LENGTH = struct.Struct(">H")


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """``event`` stands at ``index`` in the log of the checkpoint; nothing counts unchecked."""

    key: PublicKey
    event: bytes
    index: int
    path: tuple[bytes, ...]
    signed: SignedCheckpoint
    certificate: Certificate | None = None

    def text(self) -> bytes:
        """The proof as it is kept in a file."""
        return _write(_INCLUSION, self.event, f"index {self.index}", self)


@dataclass(frozen=True, slots=True)
class ConsistencyProof:
    """The log of the checkpoint begins with the ``old`` events it had before."""

    key: PublicKey
    old: int
    path: tuple[bytes, ...]
    signed: SignedCheckpoint
    certificate: Certificate | None = None

    def text(self) -> bytes:
        """The proof as it is kept in a file."""
        return _write(_CONSISTENCY, b"", f"old {self.old}", self)


Proof = InclusionProof | ConsistencyProof


def parse_proof(data: bytes) -> Proof:
    """Read a proof, spelt exactly as `InclusionProof.text` or `ConsistencyProof.text` spells it.

    Raises:
        ProofError: ``data`` is longer than `MAX_PROOF_BYTES` or anything else than that.
    """
    if len(data) > MAX_PROOF_BYTES:
        raise ProofError(f"a proof over {MAX_PROOF_BYTES} bytes")
    try:
        return _read(split(data))
    except (TextError, CheckpointError, CertificateError, PublicKeyError) as error:
        raise ProofError(f"not a proof: {error}") from error


def load_proof(path: Path) -> Proof:
    """The proof in a file, unchecked.

    Raises:
        ProofError: the file holds none.
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        return parse_proof(file.read(MAX_PROOF_BYTES + 1))


def begins_like_proof(path: Path) -> bool:
    """Whether the file at ``path`` means to be a proof, of whatever version.

    Raises:
        OSError: it cannot be read.
    """
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(max(map(len, _BEGINNINGS))).startswith(_BEGINNINGS)


def _write(form: str, event: bytes, place: str, proof: Proof) -> bytes:
    if proof.certificate is None:
        signer = bytes([ALGORITHM]) + proof.key.raw
    else:
        signer = bytes([_CERTIFIED]) + _bounded(encode_certificate(proof.certificate))
    extra = base64.b64encode(signer + event).decode()
    hashes = [base64.b64encode(node).decode() for node in proof.path]
    head = "\n".join([form, f"extra {extra}", place, *hashes])
    return f"{head}\n\n".encode() + proof.signed.note()


def _read(lines: list[str]) -> Proof:
    form = lines[0]
    if form not in (_INCLUSION, _CONSISTENCY):
        raise TextError(f"got {shown(form)} in line 1, wanted {_INCLUSION} or {_CONSISTENCY}")
    if "" not in lines:
        raise TextError("cut off: the empty line before the checkpoint is missing")
    gap = lines.index("")
    head, note = lines[1:gap], "".join(f"{line}\n" for line in lines[gap + 1 :]).encode()
    extra = binary(_field(head, 0, "extra"), "extra")
    name = "index" if form == _INCLUSION else "old"
    place = number(_field(head, 1, name), name)
    path = _read_hashes(head[2:])
    key, certificate, event = _split_extra(extra)
    if bool(event) != (form == _INCLUSION):
        wanted = "a signer and an event" if form == _INCLUSION else "a signer alone"
        raise TextError(f"got extra with {len(event)} bytes behind the signer, wanted {wanted}")
    signed = parse_checkpoint(note)
    if form == _INCLUSION:
        return InclusionProof(key, event, place, path, signed, certificate)
    return ConsistencyProof(key, place, path, signed, certificate)


def _split_extra(extra: bytes) -> tuple[PublicKey, Certificate | None, bytes]:
    form = extra[0] if extra else 0
    if form == ALGORITHM and len(extra) >= _KEY_BYTES:
        return PublicKey(extra[1:_KEY_BYTES]), None, extra[_KEY_BYTES:]
    if form == _CERTIFIED and len(extra) >= _LENGTH.size + 1:
        start = _LENGTH.size + 1
        end = start + _LENGTH.unpack_from(extra, 1)[0]
        if end <= len(extra):
            certificate = decode_certificate(extra[start:end])
            return PublicKey(certificate.key), certificate, extra[end:]
    raise TextError(
        f"got extra of {len(extra)} bytes that begins with {form}, wanted {ALGORITHM} and the "
        f"{_KEY_BYTES - 1} bytes of a key, or {_CERTIFIED} and a certificate behind its length"
    )


def _bounded(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def _field(head: Sequence[str], at: int, name: str) -> str:
    line = head[at] if at < len(head) else ""
    found, space, text = line.partition(" ")
    if (found, space) != (name, " "):
        raise TextError(f"got {shown(line)} in line {at + 2}, wanted {name!r} and a space")
    return text


def _read_hashes(lines: Sequence[str]) -> tuple[bytes, ...]:
    if len(lines) > MAX_HASHES:
        raise TextError(f"got a path of {len(lines)} hashes, at most {MAX_HASHES}")
    return tuple(binary(line, f"hash {place}", 32) for place, line in enumerate(lines, 1))
