"""Revocations: a root key says from which event of a log on another key is not to be trusted.

What the key wrote before that event stands: whoever stole the key cannot undo it. The bound is a
place in the log, not a time, since a thief writes what time he likes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from esper_events.errors import PublicKeyError, RevocationError
from esper_events.keys import SIGNATURE_BYTES, PublicKey, SigningKey
from esper_events.statement import StatementReader, encode_statement, unsigned_bytes

DOMAIN = b"esper.revocation.v1\x00"
"""Prefix of the signed bytes: a signature over a revocation means nothing anywhere else."""
MAX_REVOCATION_BYTES = 1024


class Revocation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The owner of ``root`` takes ``key`` back, both raw Ed25519 public keys: what it signed in
    ``log`` from event ``since`` on is not to be trusted.

    ``log`` is "" and ``since`` 0 where that holds in every log of the root, but for those in which
    another revocation says from where. What is signed is `DOMAIN` and the canonical bytes of the
    revocation with an empty signature.
    """

    root: bytes
    key: bytes
    log: str
    since: int
    signature: bytes

    def signed_bytes(self) -> bytes:
        """What ``signature`` is over."""
        return DOMAIN + unsigned_bytes(self)


_reader = StatementReader(Revocation, "revocation", MAX_REVOCATION_BYTES, RevocationError)


def revoke(root: SigningKey, key: PublicKey, log: str = "", since: int = 0) -> Revocation:
    """The revocation of ``key``, signed by ``root``."""
    blank = Revocation(root=root.public.raw, key=key.raw, log=log, since=since, signature=b"")
    return msgspec.structs.replace(blank, signature=root.sign(blank.signed_bytes()))


def encode_revocation(revocation: Revocation) -> bytes:
    """Its canonical bytes, as they stand in an event."""
    return encode_statement(revocation)


def decode_revocation(data: bytes) -> Revocation:
    """The revocation whose canonical bytes are ``data``, unchecked.

    Raises:
        RevocationError: ``data`` is longer than `MAX_REVOCATION_BYTES`, or anything else.
    """
    return _reader.decode(data)


def load_revocation(path: Path) -> Revocation:
    """The revocation in a file, signed by the root that it names.

    Raises:
        RevocationError: the file cannot be read, or holds none.
    """
    try:
        with Path(path).open("rb") as file:
            revocation = decode_revocation(file.read(MAX_REVOCATION_BYTES + 1))
        check_revocation(revocation)
    except OSError as error:
        raise RevocationError(f"{path}: cannot be read: {error.strerror}") from error
    except RevocationError as error:
        raise RevocationError(f"{path}: {error}") from error
    return revocation


def since_when(told: Iterable[Revocation], key: PublicKey, log: str) -> int | None:
    """From which event of ``log`` on ``key`` is not to be trusted by what is ``told``, each of it
    checked; None if it says nothing of that. One of every log counts where none is of this one."""
    of_key = [revocation for revocation in told if revocation.key == key.raw]
    here = [r.since for r in of_key if r.log == log]
    everywhere = [r.since for r in of_key if not r.log]
    return min(here or everywhere, default=None)


def check_revocation(revocation: Revocation) -> tuple[PublicKey, PublicKey]:
    """The root that signed it, and the key that it takes back.

    Raises:
        RevocationError: it names no such keys, or is not signed by the root that it names; whether
            that is the root that counts is for the caller to say.
    """
    try:
        root, key = PublicKey(revocation.root), PublicKey(revocation.key)
    except PublicKeyError as error:
        raise RevocationError(f"the revocation names no key: {error}") from error
    if revocation.since < 0 or (not revocation.log and revocation.since):
        where = f"log {revocation.log!r}" if revocation.log else "every log"
        raise RevocationError(f"a revocation from event {revocation.since} of {where} on")
    if len(revocation.signature) != SIGNATURE_BYTES or not root.verify(
        revocation.signature, revocation.signed_bytes()
    ):
        raise RevocationError(
            f"the signature of the root {root.fingerprint} does not fit the revocation of "
            f"{key.fingerprint}"
        )
    return root, key
