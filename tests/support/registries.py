"""What the tests of the registry share: its events, and segments of it sealed by whoever likes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from esper_events.certificate import Certificate
from esper_events.checkpoint import Checkpoint
from esper_events.keys import SigningKey
from esper_events.registry import (
    REGISTRY,
    REGISTRY_CODEC,
    HeadRecorded,
    JobCancelled,
    JobEnded,
    JobParked,
    JobReleased,
    JobSubmitted,
    LeaseExpired,
    LeaseGranted,
    RegistryBegun,
    RegistryEvent,
    RunRegistered,
    WriterAdmitted,
    WriterRevoked,
)
from esper_events.registry_chain import RegistryVerifier
from esper_events.revocation import Revocation
from esper_events.segment import seal

GENESIS_OF_RUN = "ab" * 32


def begun(key: SigningKey, certificate: Certificate | None = None) -> RegistryBegun:
    """The first event of a registry."""
    vouched = {} if certificate is None else {"certificate": certificate}
    return RegistryBegun(time=1.0, writer=key.public.raw, **vouched)


def admitted(certificate: Certificate) -> WriterAdmitted:
    return WriterAdmitted(time=1.0, certificate=certificate)


def revoked(revocation: Revocation) -> WriterRevoked:
    return WriterRevoked(time=1.0, revocation=revocation)


def registered(key: SigningKey, log: str = "r", genesis: str = GENESIS_OF_RUN) -> RunRegistered:
    return RunRegistered(time=1.0, log=log, trainer_key=key.public.raw, genesis=genesis)


def head(key: SigningKey, size: int, log: str = "r", root: bytes = bytes(32)) -> HeadRecorded:
    """The run's head at ``size`` events, its note signed by ``key``."""
    return HeadRecorded(time=1.0, log=log, note=Checkpoint(log, size, root).sign(key))


def submitted(job: str = "j", **changes: Any) -> JobSubmitted:
    fields = {"config": "", "directory": "/", "seed": 0, "ack": "jetstream"}
    limits = {"memory": 0, "seconds": 0.0, "attempts": 3}
    return JobSubmitted(time=1.0, job=job, **{**fields, **limits, **changes})


def granted(epoch: int, holder: str = "ann", job: str = "j", log: str = "r") -> LeaseGranted:
    return LeaseGranted(time=1.0, job=job, epoch=epoch, holder=holder, log=log)


def expired(epoch: int, holder: str = "ann", job: str = "j") -> LeaseExpired:
    return LeaseExpired(time=1.0, job=job, epoch=epoch, holder=holder)


def released(epoch: int, job: str = "j") -> JobReleased:
    return JobReleased(time=1.0, job=job, epoch=epoch, reason="asked to stop")


def parked(epoch: int, job: str = "j") -> JobParked:
    return JobParked(time=1.0, job=job, epoch=epoch, reason="out of memory")


def cancelled(job: str = "j") -> JobCancelled:
    return JobCancelled(time=1.0, job=job, reason="not wanted")


def job_ended(epoch: int, job: str = "j", log: str = "r") -> JobEnded:
    return JobEnded(time=1.0, job=job, epoch=epoch, outcome="completed", reason="", log=log)


def sealed_next(
    chain: RegistryVerifier, key: SigningKey, events: Sequence[RegistryEvent], **changes: Any
) -> bytes:
    """The segment by which ``key`` would add ``events``, whether they may stand there or not."""
    fields: dict[str, Any] = {"log": REGISTRY, "first_index": chain.events, "previous": chain.head}
    encoded = [REGISTRY_CODEC.encode(event) for event in events]
    return seal(encoded, key=key, **{**fields, **changes})
