"""The catalogue of the registry: the one log that all runs of a server share.

It records which runs there are and how far each had come, so that deleting or cutting one is found
out, and which job is whose. Many write in it; its segments are those of a run's log.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from esper_events.certificate import Certificate
from esper_events.codec import Codec
from esper_events.revocation import Revocation

REGISTRY = "registry"
"""The log id of every registry."""


class _Entry(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    time: float


class RegistryBegun(_Entry, frozen=True, tag="registry.begun"):
    """Genesis of a registry: the key that began it, and the root that vouches for that key.

    ``certificate`` is left out, on the wire too, where no root key vouches for the writer's; the
    writer's key then stands in the root's place.
    """

    writer: bytes
    certificate: Certificate | msgspec.UnsetType = msgspec.UNSET


class WriterAdmitted(_Entry, frozen=True, tag="registry.writer_admitted"):
    """From here on the key of ``certificate`` may write in the registry: the root says so. The
    first event of a segment can admit the key that signs the segment."""

    certificate: Certificate


class WriterRevoked(_Entry, frozen=True, tag="registry.writer_revoked"):
    """From here on the key of ``revocation`` may not write, nor sign heads: the root says so. What
    it wrote before stands."""

    revocation: Revocation


class RunRegistered(_Entry, frozen=True, tag="registry.run_registered"):
    """There is a run: its log, its trainer's key, and the SHA-256 in hex of its first segment."""

    log: str
    trainer_key: bytes
    genesis: str


class HeadRecorded(_Entry, frozen=True, tag="registry.head_recorded"):
    """The run had come so far: ``note`` is its signed checkpoint, byte for byte. What it counts was
    on the server by then."""

    log: str
    note: bytes


class JobSubmitted(_Entry, frozen=True, tag="job.submitted"):
    """Work for a daemon: train what ``config`` says, its relative paths taken from ``directory``.

    0 stands for no limit in ``memory`` (bytes), ``seconds`` and ``attempts``, the number of leases
    that may expire before the job is parked.
    """

    job: str
    config: str
    directory: str
    seed: int
    ack: Literal["journal", "jetstream"]
    memory: int
    seconds: float
    attempts: int


class LeaseGranted(_Entry, frozen=True, tag="lease.granted"):
    """``holder`` has the job, and writes its run's log ``log`` in lease epoch ``epoch``: 0 at
    first, one more with each grant."""

    job: str
    epoch: int
    holder: str
    log: str


class LeaseExpired(_Entry, frozen=True, tag="lease.expired"):
    """``holder`` has not been heard of: the lease ``epoch`` of the job is over."""

    job: str
    epoch: int
    holder: str


class JobReleased(_Entry, frozen=True, tag="job.released"):
    """The holder of the lease ``epoch`` stopped at a safe point; the job is there to be taken."""

    job: str
    epoch: int
    reason: str


class JobParked(_Entry, frozen=True, tag="job.parked"):
    """The job is not tried again: it failed in lease ``epoch`` (-1 where none was granted), or its
    leases expired too often."""

    job: str
    epoch: int
    reason: str


class JobCancelled(_Entry, frozen=True, tag="job.cancelled"):
    """Somebody does not want the job any more; who holds a lease of it stops."""

    job: str
    reason: str


class JobEnded(_Entry, frozen=True, tag="job.ended"):
    """The run of the job is over, written to its end in lease ``epoch``."""

    job: str
    epoch: int
    outcome: Literal["completed", "interrupted", "failed"]
    reason: str
    log: str


RegistryEvent = (
    RegistryBegun
    | WriterAdmitted
    | WriterRevoked
    | RunRegistered
    | HeadRecorded
    | JobSubmitted
    | LeaseGranted
    | LeaseExpired
    | JobReleased
    | JobParked
    | JobCancelled
    | JobEnded
)

REGISTRY_CODEC = Codec[RegistryEvent](RegistryEvent)
"""Of the registry's events."""


class RegistryRecord(msgspec.Struct, frozen=True):
    """An event with its place in the registry."""

    index: int
    event: RegistryEvent


def kind_of(event: RegistryEvent) -> str:
    """The kind of ``event`` as it stands on the wire."""
    return str(type(event).__struct_config__.tag)
