"""Logs under a root, whose keys are rotated and revoked."""

from __future__ import annotations

from typing import Any

import msgspec

from esper_events.certificate import Certificate, Role, certify
from esper_events.events import KeyRevoked, KeyRotated, RunTakenOver
from esper_events.keys import SigningKey
from esper_events.revocation import Revocation, revoke
from support.event_runs import LOG, lattice, started
from support.signed_logs import SignedLog


def trusted(
    key: SigningKey, root: SigningKey, role: Role = Role.TRAINER, log: str = ""
) -> Certificate:
    return certify(root, key.public, role, log)


def begin(
    key: SigningKey,
    following: SigningKey | None = None,
    root: SigningKey | None = None,
    log: str = LOG,
) -> SignedLog:
    """A log of two events, that commits to the key ``following`` and for which ``root`` vouches."""
    genesis = started(key)
    if following is not None:
        genesis = msgspec.structs.replace(genesis, next_key=following.public.digest)
    if root is not None:
        genesis = msgspec.structs.replace(genesis, certificate=trusted(key, root))
    return SignedLog(log).say(key, genesis, lattice("fc"))


def rotated(
    key: SigningKey, following: SigningKey, root: SigningKey | None = None, **changes: Any
) -> KeyRotated:
    event = KeyRotated(time=2.0, trainer_key=key.public.raw, next_key=following.public.digest)
    if root is not None:
        event = msgspec.structs.replace(event, certificate=trusted(key, root))
    return msgspec.structs.replace(event, **changes)


def revoked(
    subject: SigningKey, by: SigningKey, bound: int, where: str = LOG, **changes: Any
) -> KeyRevoked:
    revocation: Revocation = revoke(by, subject.public, where, bound)
    return KeyRevoked(
        time=2.0, revocation=msgspec.structs.replace(revocation, **changes), reason="stolen"
    )


def taken(log: SignedLog, key: SigningKey, epoch: int = 1, **changes: Any) -> RunTakenOver:
    event = RunTakenOver(
        time=2.0, epoch=epoch, holder="b", after=log.head, trainer_key=key.public.raw, reason=""
    )
    return msgspec.structs.replace(event, **changes)
