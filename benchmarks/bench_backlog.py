"""A million events on the embedded server while a reader stalls; then the server is killed.

The reader takes a few segments, stalls until the writer has come to the end, and reads on: every
segment must be there, in order. After ``kill -9`` the time counts until the server, started again
on its store, gives out the last segment.

    python -m benchmarks.bench_backlog [--events N] [--batch N]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from pathlib import Path

from benchmarks.bench_event_store import begin, commits_to
from esper.log.jetstream import JetStreamStore
from esper.log.run import open_run_log
from esper.log.sources import EmbeddedSource
from esper.log.workspace import Workspace
from esper_events.chain import ChainVerifier

LOG = "backlog"
BEFORE = 20
"""Segments that are there when the reader begins; it stalls half way through them."""


def main() -> None:
    """Print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=100, help="events of a commit")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="esper-backlog-", ignore_cleanup_errors=True) as name:
        area = Workspace(Path(name) / "workspace")
        log = open_run_log(Path(name) / "run", log_id=LOG, workspace=area, ack="jetstream")
        commit = commits_to(begin(log, area.key().public))
        commit(BEFORE, options.batch)
        source = EmbeddedSource(area.attach_server(), LOG)
        reader = Reader(source.connect())
        reader.read(BEFORE // 2)

        start = time.perf_counter()
        commit(options.events // options.batch, options.batch)
        segments = log.close().segments
        report("written, server's acknowledgement, events/s", options.events, start)

        start = time.perf_counter()
        reader.read(segments)
        report("read on and verified, events/s", options.events, start)
        if reader.position != segments:
            raise SystemExit(f"read {reader.position} of {segments} segments")

        seconds = recovery(area, source, segments)
        stored = sum(path.stat().st_size for path in area.path.rglob("*.blk"))
        print(f"segments {segments:,}, {stored / 1e6:,.0f} MB on the server, no gap")
        print(f"killed server gives out the last segment after {seconds * 1e3:,.0f} ms")
        used = processor_seconds(int(endpoint(area)["pid"]))
        print(f"of which the new one's processor time {used * 1e3:,.0f} ms")
        source.close()


class Reader:
    """Reads and verifies the server's copy from the place to which it has come."""

    def __init__(self, store: JetStreamStore) -> None:
        self._store = store
        self.chain = ChainVerifier()
        self.position = 0

    def read(self, end: int) -> None:
        """On to segment ``end``; raises where one is missing or out of order."""
        self._store.refresh()
        for segment in self._store.read(self.position):
            if self.position == end:
                return
            self.chain.accept(segment)
            self.position += 1


def recovery(area: Workspace, source: EmbeddedSource, segments: int) -> float:
    """Seconds from the server's death until another one serves the store."""
    os.kill(int(endpoint(area)["pid"]), signal.SIGKILL)
    start = time.perf_counter()
    store = source.connect()
    (last,) = store.read(segments - 1)
    seconds = time.perf_counter() - start
    if store.count != segments or not last:
        raise SystemExit(f"{store.count} of {segments} segments came back")
    store.close()
    return seconds


def endpoint(area: Workspace) -> dict[str, str | int]:
    """What the server of ``area`` tells its clients."""
    found: dict[str, str | int] = json.loads((area.path / "server" / "endpoint.json").read_text())
    return found


def processor_seconds(pid: int) -> float:
    """What the process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def report(what: str, events: int, start: float) -> None:
    """Print a rate."""
    print(f"{what}: {events / (time.perf_counter() - start):,.0f}")


if __name__ == "__main__":
    main()
