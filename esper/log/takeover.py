"""Going on with a run that another machine began, or this one in an earlier lease.

With ``ack="jetstream"`` the stream is the run's history. Who takes the run over makes it the
journal's, begins the lease epoch that it was given behind all that is there, and has the run when
that is acknowledged. ``models/takeover.pml`` is what this is built by.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from esper.log.credentials import Credentials
from esper.log.errors import (
    ConflictError,
    FencedError,
    LogError,
    MissingStreamError,
    RunEndedError,
    StoreUnavailableError,
)
from esper.log.event_log import EventLog
from esper.log.journal import JournalStore
from esper.log.opening import Beginning, RunPlace, first_segment, holds_a_run
from esper.log.quarantine import set_aside
from esper.log.run import open_run_log, resume_run_log
from esper.log.settling import Acknowledgement
from esper.log.sources import EmbeddedSource, UserSource, source_for
from esper.log.store import Store
from esper.log.stream import check_log_id
from esper.log.succession import follow_keys
from esper.log.workspace import Workspace
from esper_events.chain import ChainVerifier
from esper_events.errors import ChainError
from esper_events.events import Record, RunEnded, RunTakenOver
from esper_events.place import Place
from esper_events.segment import open_segment

_ANSWER_SECONDS = 30.0


@dataclass(frozen=True)
class Lease:
    """The right to train the run ``log_id`` in lease ``epoch``, which the registry grants to
    ``holder`` for ``reason``. Epochs of a run begin at 0, and one is granted once."""

    epoch: int
    holder: str
    log_id: str
    reason: str = ""


def lease_run_log(
    run_dir: Path,
    lease: Lease,
    *,
    workspace: Workspace,
    nats: str | None = None,
    ack: Acknowledgement = "jetstream",
    accept_unproved: bool = False,
) -> EventLog:
    """The log of the run of ``lease``: `take_over_run_log` where the stream is its history.

    With ``ack="journal"`` the journal is, and the run goes on with it, or begins, in ``run_dir``.
    Raises ``LogError`` besides for a run whose journal lies elsewhere.
    """
    if ack == "jetstream":
        return take_over_run_log(
            run_dir, lease, workspace=workspace, nats=nats, accept_unproved=accept_unproved
        )
    if holds_a_run(run_dir):
        if first_segment(run_dir).log != lease.log_id:
            raise _other_run(run_dir, first_segment(run_dir).log, lease)
        return resume_run_log(run_dir, workspace=workspace, nats=nats)
    if _begun_elsewhere(lease.log_id, workspace, nats):
        raise LogError(
            f"run {lease.log_id} was begun, and its journal does not lie in {run_dir}: a run that "
            'is to go on from the server\'s copy needs ack = "jetstream"'
        )
    return open_run_log(run_dir, log_id=lease.log_id, workspace=workspace, nats=nats)


def _begun_elsewhere(log: str, workspace: Workspace, nats: str | None) -> bool:
    source = source_for(log, workspace, nats)
    try:
        stream = source.connect(create=False)
    except MissingStreamError:
        return False
    finally:
        source.close()
    begun = stream.count > 0
    stream.close()
    return begun


def take_over_run_log(
    run_dir: Path,
    lease: Lease,
    *,
    workspace: Workspace,
    nats: str | None = None,
    accept_unproved: bool = False,
) -> EventLog:
    """The log of the run of ``lease``, to be continued in that epoch from what the stream has.

    ``run_dir`` may hold the run's journal, in whatever state, or nothing. A journal that this epoch
    was begun in goes on: what it has beyond the stream is shipped, and waited for. Any other gives
    way to the stream's history; what it has more, or else, is set aside in ``run_dir/quarantine``.
    A log without records is one of which nothing ever came to the stream: it is to be begun.

    Raises:
        RunEndedError: the run has ended: there is nothing to go on with.
        FencedError: the run is in a later epoch already.
        StoreUnavailableError: the server does not answer, or did not acknowledge in time; to be
            tried again, with the same lease.
        ConflictError: another process writes the journal, or has written in this epoch.
        LogError: this workspace's key may not write in the log, or the log is damaged.
    """
    check_log_id(lease.log_id)
    place = RunPlace(run_dir, lease.log_id, workspace, nats, "jetstream", accept_unproved)
    deadline = time.monotonic() + _ANSWER_SECONDS
    while True:
        log = place.open(partial(_prepare, place, lease))
        if log.flush(max(0.0, deadline - time.monotonic())):
            return _unless_ended(log)
        log.close()
        if log.failure is None or time.monotonic() > deadline:
            reason = log.replica_state.reason or "no answer"
            raise StoreUnavailableError(f"the server did not acknowledge the takeover: {reason}")
        if log.fenced is None or log.fenced.epoch >= lease.epoch:
            raise log.failure
        # A late entry of an epoch before came first: behind that, then, in the epoch given.


def _unless_ended(log: EventLog) -> EventLog:
    records = log.records()
    if records and isinstance(records[-1].event, RunEnded):
        log.close()
        raise _ended(log.log_id, records[-1].event)
    return log


def _ended(log: str, event: RunEnded) -> RunEndedError:
    return RunEndedError(
        f"run {log} has ended ({event.outcome}): there is nothing to take over", event
    )


@dataclass
class _History:
    """What the stream holds, verified; ``epoch`` is that of its last segment, None before one."""

    segments: list[bytes] = field(default_factory=list)
    chain: ChainVerifier = field(default_factory=ChainVerifier)
    epoch: int | None = None
    last: Record | None = None

    @classmethod
    def read(cls, stream: Store) -> _History:
        history = cls()
        try:
            for segment in stream.read():
                history.last = history.chain.accept(segment)[-1]
                history.segments.append(segment)
        except ChainError as error:
            raise LogError(f"the copy on the server cannot be taken over: {error}") from error
        if history.segments:
            history.epoch = open_segment(history.segments[-1]).epoch
        return history

    def shared_with(self, journal: JournalStore) -> int:
        """How many segments both hold alike from the first on."""
        pairs = zip(journal.read(), self.segments, strict=False)
        return next(
            (place for place, (here, there) in enumerate(pairs) if here != there),
            min(journal.count, len(self.segments)),
        )


def _prepare(
    place: RunPlace, lease: Lease, journal: JournalStore, source: EmbeddedSource | UserSource
) -> Beginning:
    """Have the journal hold what the run goes on from; what is to be written first."""
    _refuse_other_run(journal, lease)
    stream = source.connect()
    try:
        history = _History.read(stream)
    finally:
        stream.close()
    shared = history.shared_with(journal)
    if _goes_on(journal, history, shared, lease):
        return _go_on(place, lease, journal)
    begun = history.epoch == lease.epoch
    _refuse(history, lease, lost=begun and shared == journal.count)
    # A journal of this very epoch that has lost its end is made whole: nothing begins.
    event = None if begun else _takeover(place, lease, history)
    set_aside(place.run_dir, journal, shared)
    if not journal.count == shared == len(history.segments):
        journal.replace(history.segments)
    return Beginning(lease.epoch, event) if event else _go_on(place, lease, journal)


def _go_on(place: RunPlace, lease: Lease, journal: JournalStore) -> Beginning:
    """In an epoch that this journal has begun, under the key that the workspace signs with now."""
    if journal.count and follow_keys(place.workspace, journal) is not None:
        raise LogError(
            f"run {lease.log_id}: lease epoch {lease.epoch} was begun by a key that this workspace "
            "signs with no more, and the run has committed to no other: it needs a new lease"
        )
    return Beginning(lease.epoch)


def _refuse_other_run(journal: JournalStore, lease: Lease) -> None:
    for first in islice(journal.read(), 1):
        held = open_segment(first).log
        if held != lease.log_id:
            raise _other_run(journal.directory, held, lease)


def _other_run(directory: Path, held: str, lease: Lease) -> LogError:
    return LogError(
        f"{directory} holds the journal of run {held}, wanted that of {lease.log_id}, or none"
    )


def _goes_on(journal: JournalStore, history: _History, shared: int, lease: Lease) -> bool:
    """Whether the journal is of this epoch, and has all that the stream has."""
    if not journal.count or shared < len(history.segments):
        return False
    epochs = {open_segment(segment).epoch for segment in journal.read(shared)}
    return epochs <= {lease.epoch} and (bool(epochs) or history.epoch == lease.epoch)


def _refuse(history: _History, lease: Lease, *, lost: bool) -> None:
    if history.last is not None and isinstance(history.last.event, RunEnded):
        raise _ended(lease.log_id, history.last.event)
    if history.epoch is None or history.epoch < lease.epoch or lost:
        return
    if history.epoch == lease.epoch:
        raise ConflictError(
            f"run {lease.log_id}: another journal than this has been written in lease epoch "
            f"{lease.epoch}; an epoch has one writer, so this machine needs a new one"
        )
    raise FencedError(
        f"run {lease.log_id} is in lease epoch {history.epoch}, later than {lease.epoch}: another "
        "has the run",
        history.epoch,
        "",
        history.chain.events,
        len(history.segments),
    )


def _takeover(place: RunPlace, lease: Lease, history: _History) -> RunTakenOver | None:
    """What begins the epoch behind ``history``; None where there is none, so that the run itself
    is to begin. Raises ``LogError`` where this workspace's key may not."""
    chain = history.chain
    if not history.segments:
        return None
    key = place.workspace.key().public
    told = place.workspace.credentials().under(chain.authority.root)
    if chain.authority.trainer == key:
        told = Credentials.of(key)
    event = RunTakenOver(
        time=time.time(),
        epoch=lease.epoch,
        holder=lease.holder,
        after=chain.head.hex(),
        trainer_key=told.trainer_key,
        reason=lease.reason,
        certificate=told.certificate,
        next_key=told.next_key,
    )
    there = Place(lease.log_id, key, lease.epoch, chain.events, chain.head)
    reason = chain.admit(event, there, chain.events)
    if reason is not None:
        raise LogError(
            f"run {lease.log_id} cannot be taken over by the key of the workspace "
            f"{place.workspace.path}: {reason}; a key that did not begin the run needs a "
            "certificate of the run's root (esper keys certify)"
        )
    return event
