"""Taking a run's log into a database: what has been verified, once, and from where it ended.

The log is read from its start each time, since only following its chain tells what it holds, and
the audit projection is folded on the way; rows are written from the database's position on. They,
the state and the new position are one transaction, which begins before the first record is read and
is committed after the last: a process that dies in between has changed nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from esper.projections.audit import AuditState
from esper.projections.catalogue import AUDIT
from esper.projections.queries.database import Connection
from esper.projections.queries.rows import Value, as_text, plain, rows_of, rows_version
from esper.projections.queries.schema import RUNS, TABLES
from esper_events.chain import ChainVerifier
from esper_events.checkpoint import SignedCheckpoint
from esper_events.errors import ChainError
from esper_events.events import Record, RunStarted

_BATCH = 10_000
"""Rows that are held before they are handed to the database."""


class PositionError(Exception):
    """The database holds another history of this log than the one that was read."""


class Reader(Protocol):
    """Where verified records come from: what it has proven so far, and the run's own checkpoint
    that the log which was read bears out."""

    @property
    def verifier(self) -> ChainVerifier: ...

    @property
    def signed(self) -> SignedCheckpoint | None: ...


@dataclass(frozen=True)
class Position:
    """How far a database has come in a log: ``events`` in ``segments``, the last of which hashes
    to ``head`` (hex). ``pinned`` tells whether the key was ever known from elsewhere, ``code``
    which sources made the rows."""

    events: int
    segments: int
    head: str
    pinned: bool
    code: str


@dataclass(frozen=True)
class Taken:
    """What came of one call: ``events`` of the log are in the database, and the call wrote ``new``
    of them; all where ``rebuilt``, since other sources had made those of before."""

    events: int
    new: int
    pinned: bool
    rebuilt: bool


class Intake:
    """Takes one run into a database, call by call as its log grows.

    Args:
        database: where to.
        source: where the log is read from, for the auditor.
        reader: hands out the records, none before its segment is accepted.
        pinned: whether the key that the log is held to is known from elsewhere.
    """

    def __init__(self, database: Connection, source: str, reader: Reader, pinned: bool) -> None:
        self._database = database
        self._source = source
        self._reader = reader
        self._pinned = pinned
        self._state: AuditState = AUDIT.initial
        self._started: RunStarted | None = None
        self._pending: dict[str, list[Sequence[Value]]] = defaultdict(list)

    def take(self, records: Iterable[Record]) -> Taken:
        """Write the next ``records`` of the log, up to its present end, and the position there.

        After an error nothing of the call is in the database, and this object is of no more use.

        Raises:
            ChainError: the log is damaged.
            DatabaseError: the database failed.
            PositionError: the database knows this log otherwise.
            ProjectionError: a record says what cannot have happened.
            RowError: a record holds what a database cannot.
        """
        known: Position | None = None
        start = end = self._state.records
        with self._database.transaction():
            for record in records:
                if record.index == end:
                    known = self._position()
                    start = self._begin(known)
                self._follow(record, known)
                if record.index >= start:
                    self._write(record)
            end = self._state.records
            if known is not None and end < known.events:
                raise PositionError(
                    f"{self._database.name} holds {known.events} events of log "
                    f"{self._reader.verifier.log}, this holds {end}: it was cut or rolled back"
                )
            pinned = self._pinned or (known is not None and known.pinned)
            self._flush()
            if end:
                self._write_run(pinned)
        new = end - start
        return Taken(end, new, pinned, rebuilt=known is not None and start < known.events)

    def _position(self) -> Position | None:
        found = self._database.execute(
            "SELECT events, segments, head, key_pinned, code FROM runs WHERE log = ?",
            (self._reader.verifier.log,),
        )
        if not found:
            return None
        events, segments, head, pinned, code = found[0]
        return Position(events, segments, head, bool(pinned), code)

    def _begin(self, known: Position | None) -> int:
        """The index from which rows are to be written."""
        if known is None:
            return 0
        if known.code == rows_version():
            return known.events
        for table in TABLES:
            log = self._reader.verifier.log
            self._database.execute(f"DELETE FROM {table} WHERE log = ?", (log,))
        return 0

    def _follow(self, record: Record, known: Position | None) -> None:
        self._state = AUDIT.fold_all((record,), self._state)
        if isinstance(record.event, RunStarted):
            self._started = record.event
        verifier = self._reader.verifier
        here = (verifier.segments, verifier.head.hex())
        if known and record.index + 1 == known.events and here != (known.segments, known.head):
            raise PositionError(
                f"{self._database.name} holds another history of log {verifier.log}: the chain of "
                f"its first {known.events} events ends in {known.head[:16]} there"
            )

    def _write(self, record: Record) -> None:
        verifier = self._reader.verifier
        actor = self._key()
        for table, values in rows_of(verifier.log, record, verifier.segments - 1, actor):
            self._pending[table].append(values)
        if len(self._pending["events"]) >= _BATCH:  # Every record adds one there.
            self._flush()

    def _flush(self) -> None:
        for table, rows in self._pending.items():
            self._database.insert(table, rows)
        self._pending.clear()

    def _write_run(self, pinned: bool) -> None:
        log = self._reader.verifier.log
        row = self._run(pinned)
        values = [plain(row[name]) for name in RUNS]
        self._database.execute("DELETE FROM runs WHERE log = ?", (log,))
        self._database.insert("runs", [values])

    def _run(self, pinned: bool) -> dict[str, Value]:
        """The row of the run in ``runs``."""
        verifier, signed, state = self._reader.verifier, self._reader.signed, self._state
        started, end = self._started, state.end
        if started is None:
            raise ChainError("the log does not begin with run.started", 0, 0, 0)
        return {
            "log": verifier.log,
            "run": started.run,
            "started": started.time,
            "version": started.version,
            "seed": started.seed,
            "host_weights": started.host_weights,
            "config": started.config,
            "platform": as_text(started.platform),
            "source": self._source,
            "verified_by": self._key(),
            "key_pinned": pinned,
            "events": verifier.events,
            "segments": verifier.segments,
            "head": verifier.head.hex(),
            "checkpoint": None if signed is None else signed.checkpoint.size,
            "ended": verifier.ended,
            "outcome": None if end is None else end.outcome,
            "reason": None if end is None else end.reason,
            "last_step": None if end is None else end.step,
            "final_weights": None if end is None else end.final_weights,
            "lattice": state.lattice.digest(),
            "lattice_agrees": None if end is None else end.lattice_agrees,
            "figures": None if end is None else as_text(end.figures),
            "steps_lost": state.steps_lost,
            "audit": state.digest(),
            "code": rows_version(),
        }

    def _key(self) -> str:
        key = self._reader.verifier.signer
        return "" if key is None else key.fingerprint
