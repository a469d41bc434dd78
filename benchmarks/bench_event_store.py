"""Appending and replaying against the `eventsourcing` library on SQLite: the same work, in turns.

Every commit is waited for until it is durable. The peer is used as its manual has it: an aggregate
whose events an application saves, read back by its repository. It neither signs nor chains. Esper's
log is written as `esper train` writes it, with its copy on the embedded server, and once with the
journal alone; a replay checks every signature, hash and rule on the way. A figure is the median
over rounds, a ratio the median of the rounds' ratios with its 95 % interval.

    python -m benchmarks.bench_event_store [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from rich.console import Console
from rich.table import Table

from benchmarks.paired import Ratio
from esper.log.event_log import EventLog
from esper.log.journal import JournalStore
from esper.log.run import open_run_log
from esper.log.settling import Acknowledgement
from esper.log.workspace import Workspace
from esper.projections.catalogue import LATTICE
from esper.projections.replay import replay
from esper_events.codec import encode_event
from esper_events.events import GateMeasured, RunStarted
from esper_events.keys import PublicKey, SigningKey
from esper_events.stages import Gate

BATCHES = (1, 10, 100)
EVENTS = {1: 400, 10: 3_000, 100: 10_000}
"""Events of a round, by events in a commit."""
REASON = (
    "predicts 12.5% less held-out loss than the host alone; the lower bound is 8.1%, "
    "wanted 1% or more over 16 batches"
)
FIGURES = {
    f"{name}_held_out": 0.125 * number
    for number, name in enumerate(
        ("gain", "lower", "upper", "baseline", "candidate", "batches", "spread", "p_value"), 1
    )
}
Commits = Callable[[int, int], None]
"""Makes so many commits of so many events, each waited for."""


class Measurements(Aggregate):
    """The peer's aggregate; it counts its events."""

    def __init__(self) -> None:
        self.measured = 0

    @event("GateMeasured")
    def measure(
        self, step: int, seed: int, gate: str, passed: bool, reason: str, figures: dict[str, float]
    ) -> None:
        """One event with the fields of `GateMeasured`."""
        self.measured += 1


class Peer:
    """`eventsourcing` with its SQLite recorder, as it comes: WAL, synchronous=FULL."""

    def __init__(self, path: Path) -> None:
        self._app: Application[UUID] = Application(
            env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(path)}
        )
        self._run = Measurements()
        self._path = path

    def commit(self, commits: int, batch: int) -> None:
        """See `Commits`; a new aggregate each time."""
        self._run = Measurements()
        for step in range(commits):
            for seed in range(batch):
                self._run.measure(step, seed, "shadow", True, REASON, FIGURES)
            self._app.save(self._run)

    def replay(self) -> int:
        """Read the last aggregate back; its number of events."""
        found: Measurements = self._app.repository.get(self._run.id)
        return found.measured

    def setting(self) -> str:
        """How its database is kept."""
        with sqlite3.connect(self._path) as database:
            mode = database.execute("PRAGMA journal_mode").fetchone()[0]
            level = database.execute("PRAGMA synchronous").fetchone()[0]
        return f"journal_mode={mode}, synchronous={level}"


def measured(step: int, seed: int) -> GateMeasured:
    """An event of about 400 bytes."""
    return GateMeasured(
        time=time.time(),
        step=step,
        seed=seed,
        gate=Gate.SHADOW,
        passed=True,
        reason=REASON,
        figures=FIGURES,
    )


def begin(log: EventLog, key: PublicKey) -> EventLog:
    """``log`` with its first event in it, and its copy level where it has one."""
    start = RunStarted(
        time=0.0,
        run=log.log_id,
        trainer_key=key.raw,
        host_weights="",
        config="",
        seed=0,
        version="0",
        platform={},
    )
    log.append(start).wait(30)
    while log.replica_state.standing in ("connecting", "lagging"):
        time.sleep(0.001)
    return log


def commits_to(log: EventLog) -> Commits:
    """Commits to a run's log."""

    def commit(commits: int, batch: int) -> None:
        for step in range(commits):
            ticket = log.append(*(measured(step, seed) for seed in range(batch)))
            if not ticket.wait(30):
                raise SystemExit(f"not acknowledged: {log.failure or 'no answer'}")

    return commit


def probe(path: Path) -> Commits:
    """The bare disk: the same bytes in a file, with fdatasync."""
    file = path.open("ab", buffering=0)
    data = encode_event(measured(0, 0))

    def commit(commits: int, batch: int) -> None:
        block = data * batch
        for _ in range(commits):
            file.write(block)
            os.fdatasync(file.fileno())

    return commit


def rates(work: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Events a second of each kind of work, in turns; each says how many events it was."""
    found: dict[str, list[float]] = {name: [] for name in work}
    names = list(work)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            events = work[name]()
            found[name].append(events / (time.perf_counter() - start))
    return found


def row(table: Table, label: str, found: dict[str, list[float]]) -> None:
    """Rates, those of Esper with their ratio to the peer's."""
    peer = found["eventsourcing"]
    cells = [f"{statistics.median(peer):,.0f}"]
    for name, values in found.items():
        if name != "eventsourcing":
            ratios = Ratio.of([own / other for own, other in zip(values, peer, strict=True)])
            cells.append(f"{statistics.median(values):,.0f}\n{ratios}")
    table.add_row(label, *cells)


def appends(directory: Path, peer: Peer, rounds: int) -> Table:
    """Events a second, signed and durable."""
    area, key = Workspace(directory / "workspace"), SigningKey.generate()
    acks: dict[str, Acknowledgement] = {"journal, copied": "journal", "jetstream": "jetstream"}
    alone = EventLog(JournalStore(directory / "alone"), key, "alone", run_dir=directory)
    logs = {"journal alone": begin(alone, key.public)}
    for name, ack in acks.items():
        log = open_run_log(directory / ack, log_id=ack, workspace=area, ack=ack)
        logs[name] = begin(log, area.key().public)
    stores = {"eventsourcing": peer.commit, "fdatasync": probe(directory / "probe")}
    stores |= {name: commits_to(log) for name, log in logs.items()}
    table = Table("events a commit", *stores, title="append, events a second")
    for batch in BATCHES:
        calls = {name: partial(commits, commit, batch) for name, commit in stores.items()}
        row(table, str(batch), rates(calls, rounds))
    for log in logs.values():
        log.close()
    return table


def commits(commit: Commits, batch: int) -> int:
    """A round's worth of commits of ``batch`` events; the number of events."""
    commit(EVENTS[batch] // batch, batch)
    return EVENTS[batch]


def replays(directory: Path, peer: Peer, rounds: int) -> Table:
    """Events a second, folded from the store."""
    table = Table("events a segment", "eventsourcing", "replay, verified", title="replay")
    for batch in BATCHES:
        count, run = EVENTS[batch], directory / f"replay-{batch}"
        key = SigningKey.generate()
        log = begin(EventLog(JournalStore(run / "journal"), key, "r", run_dir=run), key.public)
        commits_to(log)(count // batch, batch)
        log.close()
        peer.commit(count // batch, batch)
        calls: dict[str, Callable[[], int]] = {
            "eventsourcing": peer.replay,
            "verified": partial(replayed, run),
        }
        row(table, str(batch), rates(calls, rounds))
    return table


def replayed(run: Path) -> int:
    """The number of events."""
    return replay(run, LATTICE).seq


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    console = Console(width=150)
    with tempfile.TemporaryDirectory(prefix="esper-bench-") as name:
        peer = Peer(Path(name) / "peer.db")
        console.print(
            f"peer: SQLite with {peer.setting()}; {len(encode_event(measured(0, 0)))} bytes"
        )
        console.print(appends(Path(name), peer, options.rounds))
        console.print(replays(Path(name), peer, options.rounds))


if __name__ == "__main__":
    main()
