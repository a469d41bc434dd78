"""A run's log as its trainer uses it: hand events over, go on, be told when they are durable."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from esper.log.circuit import Circuit
from esper.log.copies import ObjectCopies, ObjectSource
from esper.log.credentials import Credentials
from esper.log.errors import FencedError, JournalError, LogClosedError, LogError, unwritten
from esper.log.objects import DIRECTORY, ObjectWriter, digest_of, named_objects
from esper.log.replica import NO_REPLICA, OnLevel, Replica, ReplicaState
from esper.log.settling import Acknowledgement, Settling, Written
from esper.log.store import Store, StoreSource
from esper.log.ticket import Ticket, settle
from esper.log.writer import BATCH_BYTES, MAX_APPEND_BYTES, Pending, SegmentWriter, framed_size
from esper_events.codec import encode_event
from esper_events.errors import CodecError
from esper_events.events import OBJECTS, Event, Record, ReplicaChanged, RunEnded, RunStarted
from esper_events.keys import SigningKey

_EXIT_SECONDS = 3.0

Standing = Literal["lagging", "level"]


@dataclass(frozen=True)
class LogSummary:
    """What a closed log holds: ``head`` is the last segment's SHA-256 in hex, ``behind`` the
    number of segments that the server lacks."""

    events: int
    segments: int
    head: str
    behind: int


class EventLog:
    """Signs, stores and copies the events of one run; the calling thread waits for none of it.

    A background thread seals what has gathered into one segment, appends it to the journal
    (which syncs), and acknowledges; what arrives meanwhile forms the next segment. A replica
    follows on a thread of its own. With ``ack="jetstream"`` a ticket is acknowledged only when
    the server has its segment too, and a ``replica`` is required.

    The journal may hold the beginning of this log: it is verified and continued, and is
    acknowledged as the rest is: :meth:`flush` waits for it. With an ``epoch`` the log is written in
    that lease epoch, and ``begin`` comes before everything else. ``run_dir`` is where the signed
    checkpoint and objects go, None for a log without them; ``objects`` is the server that has
    copies of these; ``on_level`` is its replica's.

    Another writer of the run, which only ``ack="jetstream"`` lets be, ends this one: that is its
    ``failure``, and :attr:`fenced`.

    Raises ``LogError`` for arguments that do not fit, ``JournalError`` for a damaged journal.
    """

    def __init__(
        self,
        journal: Store,
        key: SigningKey,
        log_id: str,
        replica: StoreSource | None = None,
        ack: Acknowledgement = "journal",
        *,
        run_dir: Path | None = None,
        credentials: Credentials | None = None,
        epoch: int | None = None,
        begin: Event | None = None,
        objects: ObjectSource | None = None,
        on_level: OnLevel | None = None,
    ) -> None:
        if ack == "jetstream" and replica is None:
            raise LogError('ack="jetstream" needs a server: give a replica, or ack="journal"')
        self.log_id = log_id
        self.failure: BaseException | None = None
        """Why nothing is acknowledged any more; None while the log works."""
        self._journal = journal
        self._writer = SegmentWriter(journal, key, log_id, run_dir, epoch)
        self._records: list[Record] = []
        replayed = self._writer.replayed
        began = replayed[0].event if replayed else None
        self.credentials = (
            Credentials.told_by(began)
            if isinstance(began, RunStarted)
            else credentials or Credentials.of(key.public)
        )
        """Of the key that the log begins with, for the run's first event to tell."""
        self._next_index = len(replayed)
        self._settled = threading.Condition(threading.Lock())
        self._latest = Ticket(0, self._next_index, self._settled)
        self._ended = bool(replayed) and isinstance(replayed[-1].event, RunEnded)
        self._closing = False
        self._summary: LogSummary | None = None
        self._arrived = threading.Condition(threading.Lock())
        self._queue: deque[Pending] = deque()
        self._objects = None if run_dir is None else ObjectWriter(run_dir / DIRECTORY)
        self._in_flight: list[Pending] = []
        self._settling = Settling(ack, self._records, self._settled)
        self._settling.written(Written(journal.count - 1, [self._latest], replayed))
        self._owner = os.getpid()
        if begin is not None:
            with self._arrived:
                self._enqueue([encode_event(begin)], ends=False)
        self.copies: ObjectCopies | None = None
        """Of objects and checkpoints on the server; None without one."""
        if objects is not None and run_dir is not None:
            note, first = partial(self._note_copy, f"{OBJECTS}{objects.name}"), ack == "jetstream"
            self.copies = ObjectCopies(objects, run_dir, first=first, on_change=note)
            self.copies.add_history(named_objects(replayed))
        self._replica = None if replica is None else self._replicate(replica, ack, on_level)
        self._thread = threading.Thread(target=self._run, name="esper-log", daemon=True)
        self._thread.start()
        atexit.register(self._close_at_exit)

    def _replicate(
        self, source: StoreSource, ack: Acknowledgement, on_level: OnLevel | None
    ) -> Replica:
        def note(state: ReplicaState) -> None:
            standing: Standing = "level" if state.standing == "level" else "lagging"
            self._note_copy(source.name, standing, state.behind, state.reason)

        return Replica(
            source,
            self._journal,
            on_change=note,
            on_shipped=self._settling.shipped,
            on_fenced=self._fail if ack == "jetstream" else None,
            on_level=on_level,
            copies=self.copies,
        )

    def append(self, *events: Event) -> Ticket:
        """Hand ``events`` over as neighbours in the log; never waits, safe from any thread.

        When the log has failed the ticket has failed too. Raises ``LogError`` for an event that
        cannot be encoded or too many bytes at once, ``LogClosedError`` after ``close`` or after
        the run's end.
        """
        if os.getpid() != self._owner:
            # Before any lock: a fork may have copied it while it was held.
            raise LogError(f"log {self.log_id} belongs to the process that opened it")
        try:
            encoded = [encode_event(event) for event in events]
        except CodecError as error:
            raise LogError(str(error)) from error
        if framed_size(encoded) > MAX_APPEND_BYTES:
            raise LogError(
                f"got {framed_size(encoded)} bytes of events in one append, at most "
                f"{MAX_APPEND_BYTES} fit a segment: append them in parts"
            )
        ends = bool(events) and isinstance(events[-1], RunEnded)
        with self._arrived:
            if self._closing or self._ended:
                what = "closed" if self._closing else "at the end of its run"
                raise LogClosedError(f"log {self.log_id} is {what}: no event can be appended")
            return self._enqueue(encoded, ends)

    def _enqueue(self, encoded: list[bytes], ends: bool) -> Ticket:
        ticket = Ticket(self._next_index, len(encoded), self._settled)
        if self.failure is not None:
            ticket.mark(self.failure)
        elif not encoded:
            ticket.mark(None)
            return ticket
        else:
            self._next_index += len(encoded)
            self._ended = ends
            self._queue.append(Pending(ticket, encoded))
            self._arrived.notify()
        self._latest = ticket
        return ticket

    def keep(self, data: bytes) -> str:
        """Hand over bytes that events appended from now on may name; their SHA-256 in hex.

        Never waits. The bytes are durable, in a file of the run, before such an event is; where
        they cannot be written the log fails. A log without a run's directory keeps none.
        """
        if self._objects is not None and self.failure is None:
            self._objects.take(data)
        return digest_of(data)

    def records(self, start: int = 0) -> list[Record]:
        """The acknowledged records from index ``start`` on, in order."""
        return self._records[start:]

    def flush(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds until all that was appended is settled; whether the
        last of it is acknowledged."""
        return self._latest.wait(timeout)

    @property
    def fenced(self) -> FencedError | None:
        """Who has the run, where that is another writer by now."""
        return self.failure if isinstance(self.failure, FencedError) else None

    @property
    def breakers(self) -> dict[str, Circuit]:
        """The circuit breakers of this log, by what they are in front of."""
        return {} if self.copies is None else {"objects": self.copies.circuit}

    @property
    def replica_state(self) -> ReplicaState:
        """Where the server's copy stands."""
        return NO_REPLICA if self._replica is None else self._replica.state

    def close(self, timeout: float = 10.0) -> LogSummary:
        """Write what is left, wait at most ``timeout`` seconds for disk and server, let go.

        A server that is away never makes this fail, and is asked only once more; a failed journal
        shows in ``failure``.
        """
        if self._summary is not None:
            return self._summary
        deadline = time.monotonic() + timeout
        with self._arrived:
            self._closing = True
            self._arrived.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._fail(LogError(f"log {self.log_id}: the disk did not answer in {timeout:g} s"))
        behind = 0
        if self._replica is not None:
            self._replica.finish(deadline - time.monotonic())
            behind = self._replica.state.behind
            lost = LogError(f"the server did not take the last {behind} segments before close")
            self._settling.abandon(self.failure or lost)
        self._summary = LogSummary(
            self._writer.events, self._journal.count, self._writer.head.hex(), behind
        )
        if not self._thread.is_alive():
            self._sign_the_rest()
            self._journal.close()
        atexit.unregister(self._close_at_exit)
        return self._summary

    def _close_at_exit(self) -> None:
        """The interpreter ends with the log open: keep what was handed over, in bounded time."""
        if os.getpid() == self._owner:
            self.close(_EXIT_SECONDS)

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._commit(batch)
                self._sign()
            self._sign(now=True)
        except BaseException as error:  # noqa: BLE001 - kept for the trainer, and tickets tell it
            self._fail(error)

    def _next_batch(self) -> list[Pending]:
        """What has gathered, up to a segment's size; empty when the log is closing."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._queue or self._closing)
            batch: list[Pending] = []
            size = 0
            while self._queue and (not batch or size + self._queue[0].size <= BATCH_BYTES):
                batch.append(self._queue.popleft())
                size += batch[-1].size
            self._in_flight = batch
            return batch

    def _commit(self, batch: list[Pending]) -> None:
        self._write_objects()
        records = self._writer.write([event for pending in batch for event in pending.events])
        tickets = [pending.ticket for pending in batch]
        self._in_flight = []
        self._settling.written(Written(self._journal.count - 1, tickets, records))
        if self._replica is not None:
            self._replica.wake()

    def _write_objects(self) -> None:
        """What was handed over before the batch, and maybe more."""
        if self._objects is None:
            return
        try:
            written = self._objects.write()
        except OSError as error:
            raise unwritten(f"{DIRECTORY} of the run", None, error) from error
        if self.copies is not None:
            self.copies.add(written)

    def _sign(self, *, now: bool = False) -> None:
        self._writer.checkpoint(self._settling.acknowledged, now=now)

    def _sign_the_rest(self) -> None:
        """What was acknowledged at the very end, when the log's own thread was done."""
        try:
            self._sign(now=True)
        except JournalError as error:
            self._fail(error)

    def _note_copy(self, name: str, standing: Standing, behind: int, reason: str) -> None:
        """Put the standing of a copy on the record, where the log can still take it."""
        event = ReplicaChanged(
            time=time.time(), replica=name, state=standing, behind=behind, reason=reason
        )
        with self._arrived:
            if self._next_index and not (self._closing or self._ended):
                self._enqueue([encode_event(event)], ends=False)

    def _fail(self, error: BaseException) -> None:
        with self._arrived:
            self.failure = self.failure or error
            waiting = [p.ticket for p in (*self._in_flight, *self._queue)]
            self._queue.clear()
            settle(waiting, self._settled, error)
        self._settling.abandon(error)
