"""What a registry may say: runs are registered once and only grow, leases follow one another.

These checks hold for every correct history of a registry, whoever writes in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from esper_events.checkpoint import SignedCheckpoint, parse_checkpoint
from esper_events.errors import CheckpointError, PublicKeyError
from esper_events.keys import PublicKey
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
    RunRegistered,
    kind_of,
)

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_GENESIS = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class RegisteredRun:
    """A run as the registry knows it; ``heads`` are its checkpoints in order, each larger than the
    one before."""

    log: str
    trainer: PublicKey
    genesis: str
    heads: tuple[SignedCheckpoint, ...] = ()

    @property
    def events(self) -> int:
        """How many events it had when its head was last recorded."""
        return self.heads[-1].checkpoint.size if self.heads else 0


@dataclass(frozen=True, slots=True)
class _Job:
    """``epoch`` is that of the last lease, -1 before the first; ``holder`` has it, None where
    nobody does; ``closed`` is why no lease follows, "" while one may."""

    epoch: int = -1
    holder: str | None = None
    log: str = ""
    closed: str = ""


class RegistryRules:
    """Follows one registry from its first event; `admit` each in order.

    Attributes: ``runs``, by log id.
    """

    def __init__(self) -> None:
        self.started = False
        self.runs: dict[str, RegisteredRun] = {}
        self._trainers: dict[bytes, PublicKey] = {}
        """Checked keys, which many runs have in common."""
        self._jobs: dict[str, _Job] = {}
        self._job_of: dict[str, str] = {}
        """Which job a log belongs to."""

    def fork(self) -> RegistryRules:
        """Rules that stand where these do, and go their own way."""
        other = RegistryRules()
        other.started, other.runs = self.started, self.runs.copy()
        other._jobs, other._job_of = self._jobs.copy(), self._job_of.copy()
        return other

    def admit(self, event: RegistryEvent) -> str | None:
        """Take ``event`` as the next one; the reason if it cannot stand there, else None."""
        if isinstance(event, RegistryBegun) is self.started:
            return (
                "the registry begins a second time"
                if self.started
                else f"the registry begins with {kind_of(event)}, wanted registry.begun"
            )
        self.started = True
        match event:
            case RunRegistered():
                return self._register(event)
            case HeadRecorded():
                return self._record(event)
            case JobSubmitted():
                return self._submit(event)
            case LeaseGranted():
                return self._grant(event)
            case LeaseExpired() | JobReleased() | JobEnded():
                return self._give_back(event)
            case JobParked():
                return self._park(event)
            case JobCancelled():
                return self._cancel(event)
        return None

    def _register(self, event: RunRegistered) -> str | None:
        known = self.runs.get(event.log)
        if known is not None:
            same = (known.genesis, known.trainer.raw) == (event.genesis, event.trainer_key)
            how = "a second time" if same else "a second time, with another genesis or key"
            return f"run {event.log} is registered {how}"
        if not _ID.fullmatch(event.log):
            return f"{event.log!r} is no id of a run's log"
        if not _GENESIS.fullmatch(event.genesis):
            return f"the genesis of run {event.log} is no SHA-256 in hex"
        trainer = self._trainers.get(event.trainer_key)
        if trainer is None:
            try:
                trainer = PublicKey(event.trainer_key)
            except PublicKeyError as error:
                return f"the trainer's key of run {event.log}: {error}"
            self._trainers[trainer.raw] = trainer
        self.runs[event.log] = RegisteredRun(event.log, trainer, event.genesis)
        return None

    def _record(self, event: HeadRecorded) -> str | None:
        run = self.runs.get(event.log)
        if run is None:
            return f"a head of run {event.log}, which was never registered"
        try:
            signed = parse_checkpoint(event.note)
        except CheckpointError as error:
            return f"the head of run {event.log} is {error}"
        new = signed.checkpoint
        if new.log != event.log:
            return f"the head of run {event.log} is a checkpoint of log {new.log}"
        if run.heads and new.size <= run.heads[-1].checkpoint.size:
            old = run.heads[-1].checkpoint
            if new.size == old.size and new.root != old.root:
                return f"two histories of run {event.log}: its first {new.size} events differ"
            return f"run {event.log} goes from {old.size} events to {new.size}"
        self.runs[event.log] = replace(run, heads=(*run.heads, signed))
        return None

    def _submit(self, event: JobSubmitted) -> str | None:
        if event.job in self._jobs:
            return f"job {event.job} is submitted a second time"
        if not _ID.fullmatch(event.job):
            return f"{event.job!r} is no id of a job"
        if event.memory < 0 or not event.seconds >= 0 or event.attempts < 0:
            return (
                f"job {event.job} has the limits memory {event.memory}, seconds {event.seconds:g} "
                f"and attempts {event.attempts}, wanted none below 0"
            )
        self._jobs[event.job] = _Job()
        return None

    def _grant(self, event: LeaseGranted) -> str | None:
        job = self._jobs.get(event.job)
        if job is None:
            return f"job {event.job} was never submitted"
        if job.closed:
            return f"job {event.job} is {job.closed} and takes no lease"
        if job.holder is not None:
            return f"job {event.job} is held by {job.holder} in lease epoch {job.epoch}"
        if event.epoch != job.epoch + 1:
            return f"job {event.job} gets lease epoch {event.epoch}, wanted {job.epoch + 1}"
        if not _ID.fullmatch(event.log):
            return f"{event.log!r} is no id of a run's log"
        if event.log != (job.log or event.log):
            return f"job {event.job} is written in log {job.log}, not in {event.log}"
        owner = self._job_of.setdefault(event.log, event.job)
        if owner != event.job:
            return f"log {event.log} is that of job {owner}"
        self._jobs[event.job] = replace(job, epoch=event.epoch, holder=event.holder, log=event.log)
        return None

    def _give_back(self, event: LeaseExpired | JobReleased | JobEnded) -> str | None:
        job = self._jobs.get(event.job)
        if job is None or job.holder is None:
            return f"{kind_of(event)}: nobody holds job {event.job}"
        if event.epoch != job.epoch:
            return _wrong_epoch(event, job)
        if isinstance(event, LeaseExpired) and event.holder != job.holder:
            return f"job {event.job} is held by {job.holder}, not by {event.holder}"
        if isinstance(event, JobEnded):
            if event.log != job.log:
                return f"job {event.job} is written in log {job.log}, not in {event.log}"
            job = replace(job, closed=job.closed or "ended")
        self._jobs[event.job] = replace(job, holder=None)
        return None

    def _park(self, event: JobParked) -> str | None:
        job = self._jobs.get(event.job)
        if job is None:
            return f"job {event.job} was never submitted"
        if job.closed:
            return f"job {event.job} is {job.closed} already"
        if event.epoch != job.epoch:
            return _wrong_epoch(event, job)
        self._jobs[event.job] = replace(job, holder=None, closed="parked")
        return None

    def _cancel(self, event: JobCancelled) -> str | None:
        job = self._jobs.get(event.job)
        if job is None:
            return f"job {event.job} was never submitted"
        if job.closed in ("cancelled", "ended"):
            return f"job {event.job} is {job.closed} already"
        self._jobs[event.job] = replace(job, closed="cancelled")
        return None


def _wrong_epoch(event: LeaseExpired | JobReleased | JobEnded | JobParked, job: _Job) -> str:
    kind = kind_of(event)
    return f"{kind}: job {event.job} is in lease epoch {job.epoch}, not {event.epoch}"
