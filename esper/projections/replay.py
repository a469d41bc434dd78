"""Rebuilding a projection from a run's log, which is verified on the way.

The whole log is read, whatever place is asked for: its signed checkpoint counts only at the end,
and a history of which a part is damaged is not one to draw conclusions from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from esper.projections import snapshots
from esper.projections.lattice import ProjectionError
from esper.projections.projection import Projection, S
from esper.projections.snapshots import Snapshot, SnapshotError
from esper_events.events import Record
from esper_events.keys import PublicKey
from esper_events.reader import LogReader


class OutOfRangeError(ValueError):
    """A place that the log does not have."""


@dataclass(frozen=True)
class Replayed(Generic[S]):
    """A state that was rebuilt: ``state`` is what the first ``seq`` records of ``log`` fold to.

    ``records`` is how many the log holds, and ``head`` the SHA-256 of its last segment in hex.
    ``snapshot`` tells after how many records the fold began, 0 at the start of the log.
    ``notes`` say what became of snapshots that were of no use.
    """

    projection: Projection[S]
    state: S
    seq: int
    log: str
    records: int
    head: str
    snapshot: int = 0
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """The state's digest, SHA-256 in hex."""
        return self.state.digest()


def replay(
    path: Path,
    projection: Projection[S],
    to: int | None = None,
    *,
    trusted: PublicKey | None = None,
    cached: bool = False,
) -> Replayed[S]:
    """The state of ``projection`` after the first ``to`` records of the run at ``path``.

    Args:
        path: a run directory or an exported file.
        to: number of records to fold, 0 to all; all when None.
        trusted: the trainer's key where the caller knows it.
        cached: whether to begin at the run's snapshot where it fits, and to leave one behind.
            Only a run directory has snapshots.

    Raises:
        ChainError: the log is damaged, at the place that the error names.
        OSError: a file cannot be read.
        OutOfRangeError: the log has no ``to`` records.
        ProjectionError: a record says what cannot have happened.
    """
    if to is not None and to < 0:
        raise OutOfRangeError(f"got {to}, wanted a number of records, at least 0")
    cache = _Cache(path, projection) if cached and path.is_dir() else None
    snapshot_at = cache.seq if cache else None
    folding = _Folding(projection, hold=snapshot_at is not None)
    log = _read(path, trusted, to, snapshot_at, folding.take)
    if to is not None and to != folding.seq:
        raise OutOfRangeError(f"got {to}, wanted 0 to {log.records}: the log holds no more events")
    start = cache.state(log, folding.seq) if cache else None
    state = folding.finish(start)
    if cache:
        cache.keep(state, log)
    done = 0 if start is None else start.records
    notes = tuple(cache.notes) if cache else ()
    return Replayed(
        projection, state, folding.seq, log.name, log.records, log.head.hex(), done, notes
    )


class _Folding(Generic[S]):
    """Folds records as they come, or holds them until it is told where to begin.

    A record that cannot be folded counts at the end: the log may be damaged behind it.
    """

    def __init__(self, projection: Projection[S], *, hold: bool) -> None:
        self.seq = 0
        self._projection = projection
        self._hold = hold
        self._held: list[Record] = []
        self._state = projection.initial
        self._fault: ProjectionError | None = None

    def take(self, records: list[Record]) -> None:
        """The next ones."""
        self.seq += len(records)
        if self._hold:
            self._held += records
        elif self._fault is None:
            try:
                self._state = self._projection.fold_all(records, self._state)
            except ProjectionError as error:
                self._fault = error

    def finish(self, start: S | None) -> S:
        """The state after all of them, from ``start`` on where that was waited for."""
        if self._fault is not None:
            raise self._fault
        if not self._hold:
            return self._state
        done = 0 if start is None else start.records
        return self._projection.fold_all(self._held[done:], start)


@dataclass
class _Log:
    """A verified log, and its heads at the places that matter."""

    name: str = ""
    records: int = 0
    head: bytes = b""
    kept_head: bytes = b""
    """Head at the segment of the last record that is folded."""
    snapshot_head: bytes | None = None
    """Head at the segment of the last record that the snapshot counts."""


def _read(
    path: Path,
    trusted: PublicKey | None,
    to: int | None,
    snapshot_at: int | None,
    take: Callable[[list[Record]], None],
) -> _Log:
    reader, log = LogReader(path, trusted), _Log()
    begin = 0
    for records in reader.segments():
        end, head = reader.verifier.events, reader.verifier.head
        if to is None or begin < to:
            take(records[: None if to is None else to - begin])
            log.kept_head = head
        if snapshot_at is not None and begin < snapshot_at <= end:
            log.snapshot_head = head
        begin = end
    log.name, log.records = reader.verifier.log, reader.verifier.events
    log.head = reader.verifier.head
    return log


class _Cache(Generic[S]):
    """The run's snapshot of one projection, if it is of use."""

    def __init__(self, run_dir: Path, projection: Projection[S]) -> None:
        self._run_dir = run_dir
        self._projection = projection
        self._found: Snapshot | None = None
        self.notes: list[str] = []
        try:
            self._found = snapshots.load(run_dir, projection)
        except SnapshotError as error:
            self._refuse(str(error))

    @property
    def seq(self) -> int | None:
        """The snapshot's place."""
        return None if self._found is None else self._found.seq

    def state(self, log: _Log, seq: int) -> S | None:
        """The snapshot's state, if it belongs to ``log`` and does not lie behind ``seq``."""
        found = self._found
        if found is None:
            return None
        try:
            _check_place(found, log)
            state = snapshots.restore(self._projection, found)
        except SnapshotError as error:
            self._refuse(str(error))
            return None
        return state if found.seq <= seq else None

    def keep(self, state: S, log: _Log) -> None:
        """Leave a snapshot of ``state``, unless there is a good one at its place or later."""
        covered = 0 if self._found is None else self._found.seq
        if state.records <= covered:
            return
        snapshot = snapshots.take(self._projection, state, log.name, log.kept_head)
        try:
            snapshots.save(self._run_dir, snapshot)
        except OSError as error:
            self.notes.append(f"no snapshot was kept: {error}")

    def _refuse(self, reason: str) -> None:
        self._found = None
        self.notes.append(f"the snapshot of the {self._projection.name} is ignored: {reason}")


def _check_place(snapshot: Snapshot, log: _Log) -> None:
    if snapshot.log != log.name:
        raise SnapshotError(f"it is of log {snapshot.log}, this is {log.name}")
    if snapshot.seq > log.records:
        raise SnapshotError(
            f"it is of {snapshot.seq} records, the log holds {log.records}: of its future, or of "
            "a history that was rolled back"
        )
    if snapshot.head != log.snapshot_head:
        raise SnapshotError("it is of another history: the log's chain has another head there")
