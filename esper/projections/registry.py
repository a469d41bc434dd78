"""What the registry says: which runs there are, how far each had come, and whose each job is."""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec

from esper.projections.lattice import ProjectionError
from esper.projections.projection import FoldedState, Folding, count
from esper_events.checkpoint import parse_checkpoint
from esper_events.errors import CheckpointError
from esper_events.registry import (
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
    RegistryRecord,
    RunRegistered,
    WriterAdmitted,
    WriterRevoked,
)


class RunState(msgspec.Struct, frozen=True):
    """A registered run. ``events`` and ``root`` (hex) are what its newest recorded head commits to,
    0 and "" before there is one; ``heads`` is how many there are."""

    trainer_key: bytes
    genesis: str
    events: int = 0
    root: str = ""
    heads: int = 0


class JobState(msgspec.Struct, frozen=True):
    """A job. ``state`` is ``waiting`` before a lease and between two.

    ``epoch`` is that of the last lease, -1 before the first; ``holder`` has it, "" where nobody
    does: a job that was cancelled may still be held. ``expired`` counts leases that ran out.
    ``outcome`` is the run's, once it is over; ``reason`` what the last event that has one gave.
    """

    submitted: JobSubmitted
    state: Literal["waiting", "leased", "cancelled", "parked", "ended"] = "waiting"
    epoch: int = -1
    holder: str = ""
    log: str = ""
    expired: int = 0
    outcome: Literal["", "completed", "interrupted", "failed"] = ""
    reason: str = ""


class RegistryState(FoldedState, frozen=True, tag="registry"):
    """``writers`` are the raw public keys that may write, in the order in which they came."""

    writers: tuple[bytes, ...] = ()
    runs: dict[str, RunState] = msgspec.field(default_factory=dict)
    jobs: dict[str, JobState] = msgspec.field(default_factory=dict)


_S = TypeVar("_S", RunState, JobState)


def fold(state: RegistryState, record: RegistryRecord) -> RegistryState:
    """The state after ``record``.

    Raises:
        ProjectionError: it cannot stand there; a verified registry has no such record.
    """
    return _apply(count(state, record), record.event)


REGISTRY = Folding("registry", RegistryState(), fold)
"""The reading of a registry's records."""


def _apply(state: RegistryState, event: RegistryEvent) -> RegistryState:
    match event:
        case RegistryBegun():
            return msgspec.structs.replace(state, writers=(event.writer,))
        case WriterAdmitted(certificate=certificate):
            return msgspec.structs.replace(state, writers=(*state.writers, certificate.key))
        case WriterRevoked(revocation=revocation):
            writers = tuple(key for key in state.writers if key != revocation.key)
            return msgspec.structs.replace(state, writers=writers)
        case RunRegistered():
            run = RunState(event.trainer_key, event.genesis)
            return msgspec.structs.replace(state, runs={**state.runs, event.log: run})
        case HeadRecorded():
            run = _with_head(_known(state.runs, event.log), event)
            return msgspec.structs.replace(state, runs={**state.runs, event.log: run})
        case JobSubmitted():
            job = JobState(event)
        case _:
            job = _after(_known(state.jobs, event.job), event)
    return msgspec.structs.replace(state, jobs={**state.jobs, event.job: job})


def _with_head(run: RunState, event: HeadRecorded) -> RunState:
    try:
        head = parse_checkpoint(event.note).checkpoint
    except CheckpointError as error:
        raise ProjectionError(f"the head of run {event.log} is {error}") from error
    heads = run.heads + 1
    return msgspec.structs.replace(run, events=head.size, root=head.root.hex(), heads=heads)


def _after(
    job: JobState,
    event: LeaseGranted | LeaseExpired | JobReleased | JobParked | JobCancelled | JobEnded,
) -> JobState:
    """A job that was cancelled stays so, whatever becomes of its lease."""
    open_state = "cancelled" if job.state == "cancelled" else "waiting"
    changes: dict[str, object]
    match event:
        case LeaseGranted():
            changes = {"state": "leased", "epoch": event.epoch, "holder": event.holder}
            changes["log"] = event.log
        case LeaseExpired():
            changes = {"state": open_state, "holder": "", "expired": job.expired + 1}
        case JobReleased():
            changes = {"state": open_state, "holder": "", "reason": event.reason}
        case JobParked():
            changes = {"state": "parked", "holder": "", "reason": event.reason}
        case JobCancelled():
            changes = {"state": "cancelled", "reason": event.reason}
        case JobEnded():
            ended = "cancelled" if job.state == "cancelled" else "ended"
            changes = {"state": ended, "holder": "", "outcome": event.outcome}
            changes |= {"reason": event.reason or job.reason}
    return msgspec.structs.replace(job, **changes)


def _known(table: dict[str, _S], name: str) -> _S:
    try:
        return table[name]
    except KeyError:
        raise ProjectionError(f"{name} is not in the registry") from None
