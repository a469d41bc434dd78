"""A signed checkpoint: what a log's writer vouches for, in text that can be kept elsewhere.

The form is C2SP's `tlog-checkpoint <https://c2sp.org/tlog-checkpoint>`_ in a
`signed note <https://c2sp.org/signed-note>`_: origin (``esper/`` and the log id), number of
events, and base64 of the RFC 6962 root over them, a line each; an empty line; one signature line.
Whoever keeps one can tell later that the log was cut, rolled back or rewritten.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from esper_events.errors import CheckpointError, TextError
from esper_events.files import whole_file
from esper_events.keys import ALGORITHM, SIGNATURE_BYTES, PublicKey, SigningKey
from esper_events.lines import binary, number, shown, split

CHECKPOINT = Path("checkpoint")
"""Where a run's latest checkpoint lies in its directory."""
MAX_CHECKPOINT_BYTES = 1024

_HINT_BYTES = 4
_ORIGIN = re.compile(r"esper/[A-Za-z0-9._/-]{1,128}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The first ``size`` events of ``log`` have the Merkle root ``root`` (32 bytes)."""

    log: str
    size: int
    root: bytes

    def text(self) -> bytes:
        """The lines that are signed."""
        root = base64.b64encode(self.root).decode()
        return f"{self.name}\n{self.size}\n{root}\n".encode()

    def sign(self, key: SigningKey) -> bytes:
        """The note: `text` with the signature of ``key``.

        Raises:
            CheckpointError: log id, size or root is out of range.
        """
        note = SignedCheckpoint(self, self.key_hint(key.public), key.sign(self.text())).note()
        parse_checkpoint(note)
        return note

    @property
    def name(self) -> str:
        """The log's origin line, which is also the name of its key."""
        return f"esper/{self.log}"

    def key_hint(self, key: PublicKey) -> bytes:
        """The 4 bytes by which a signed note tells whose signature it bears."""
        named = self.name.encode() + b"\n" + bytes([ALGORITHM]) + key.raw
        return hashlib.sha256(named).digest()[:4]


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint as it was read; nothing in it counts before `is_signed_by` is true."""

    checkpoint: Checkpoint
    key_hint: bytes
    signature: bytes

    def note(self) -> bytes:
        """The checkpoint as text, signature line and all."""
        signature = base64.b64encode(self.key_hint + self.signature).decode()
        line = f"\n— {self.checkpoint.name} {signature}\n"
        return self.checkpoint.text() + line.encode()

    def is_signed_by(self, key: PublicKey) -> bool:
        """Whether ``key`` signed the checkpoint, and the note says so."""
        hint = self.checkpoint.key_hint(key)
        return hint == self.key_hint and key.verify(self.signature, self.checkpoint.text())


def parse_checkpoint(note: bytes) -> SignedCheckpoint:
    """Read a note with exactly one signature line.

    Raises:
        CheckpointError: ``note`` is longer than `MAX_CHECKPOINT_BYTES`, or anything in it is
            spelt another way than `Checkpoint.sign` does.
    """
    if len(note) > MAX_CHECKPOINT_BYTES:
        raise CheckpointError(f"a checkpoint over {MAX_CHECKPOINT_BYTES} bytes")
    try:
        return _read(split(note))
    except TextError as error:
        raise CheckpointError(f"not a checkpoint: {error}") from error


def _read(lines: list[str]) -> SignedCheckpoint:
    if len(lines) != 5 or lines[3]:
        got = f"{len(lines)} lines" if len(lines) != 5 else f"{shown(lines[3])} in line 4"
        raise TextError(f"got {got}, wanted origin, size, root, an empty and one signature line")
    origin, size, root, _, signed = lines
    if not _ORIGIN.fullmatch(origin):
        raise TextError(f"got the origin {shown(origin)}, wanted esper/ and a log id")
    dash, _, rest = signed.partition(" ")
    name, _, encoded = rest.partition(" ")
    if (dash, name) != ("—", origin):
        raise TextError(f"got {shown(signed)}, wanted a signature line that begins '— {origin} '")
    signature = binary(encoded, "signature", _HINT_BYTES + SIGNATURE_BYTES)
    events = number(size, "size")
    if events == 0:
        raise TextError("got size 0, wanted a log that has begun")
    checkpoint = Checkpoint(origin.removeprefix("esper/"), events, binary(root, "root", 32))
    return SignedCheckpoint(checkpoint, signature[:_HINT_BYTES], signature[_HINT_BYTES:])


def load_checkpoint(path: Path) -> SignedCheckpoint:
    """The checkpoint in a file that somebody kept, its signature unchecked.

    Raises:
        CheckpointError: the file cannot be read, or is no checkpoint.
    """
    try:
        with Path(path).open("rb") as file:
            note = file.read(MAX_CHECKPOINT_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return parse_checkpoint(note)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def write_checkpoint(run_dir: Path, note: bytes) -> None:
    """Put ``note`` in the place of the run's checkpoint, atomically and durably.

    Raises:
        OSError: the file cannot be written.
    """
    with whole_file(run_dir / CHECKPOINT, replace=True) as file:
        file.write(note)
