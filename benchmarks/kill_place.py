"""Where a run of the kill campaign lies, and what its journal tells."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.kill_points import digest
from esper.log.keyring import ROOT
from esper.log.locks import FileLock
from esper.log.workspace import Workspace
from esper.tolaria.decisions import UNANSWERED
from esper_events.chain import ChainVerifier
from esper_events.codec import encode_event
from esper_events.errors import ChainError
from esper_events.events import (
    OF_WRITERS,
    CheckpointWritten,
    Event,
    Record,
    ReplicaChanged,
    RunStarted,
    TransitionApplied,
    TransitionLapsed,
)
from esper_events.framing import JOURNAL, LENGTH, read_frames

_SERVER_SECONDS = 20.0


@dataclass(frozen=True)
class Place:
    """Where a run lies, and all that belongs to it. ``machine`` tells apart where it is trained:
    each has a directory of the run and a workspace of its own, all have one server."""

    base: Path
    machine: int = 0

    @property
    def run(self) -> Path:
        """The run's directory."""
        return self.base / f"run-{self.machine}"

    @property
    def workspace(self) -> Path:
        """The machine's workspace."""
        return self.base / f"workspace-{self.machine}"

    @property
    def server(self) -> Path:
        """The directory of the server."""
        return self.base / "workspace-0" / "server"

    @property
    def diary(self) -> Path:
        """What its processes told before they died."""
        return self.base / "diary"

    @property
    def output(self) -> Path:
        """What its processes printed."""
        return self.base / "output"

    @property
    def result(self) -> Path:
        """What the process that ended it told: a `Result`."""
        return self.base / "result.json"


def machines(base: Path, count: int) -> list[Place]:
    """So many machines whose keys one root vouches for, and whose server is that of the first."""
    places = [Place(base, machine) for machine in range(count)]
    first = Workspace(places[0].workspace)
    first.keys.create(ROOT)
    for place in places:
        keys = Workspace(place.workspace).keys
        if place.machine:
            for path in first.keys.path.glob(f"{ROOT}.*"):
                shutil.copy(path, keys.path)
            (place.workspace / "server").symlink_to(place.server)
        keys.certify()
    return places


def server_ended(place: Place) -> bool:
    """Whether the server of the place ends, as it must when nobody needs it any more."""
    with FileLock(place.server / "server.lock") as lock:
        return lock.acquire(timeout=_SERVER_SECONDS)


@dataclass(frozen=True)
class Logged:
    """The good beginning of a run's journal, and how many bytes stand behind it."""

    records: Sequence[Record]
    torn: int

    @property
    def digests(self) -> list[str]:
        """Of each event's bytes."""
        return [digest(record.event) for record in self.records]

    @property
    def events(self) -> list[Event]:
        """In the log's order."""
        return [record.event for record in self.records]

    @property
    def applied(self) -> int:
        """How many changes were made."""
        return sum(isinstance(event, TransitionApplied) for event in self.events)

    @property
    def unanswered(self) -> int:
        """How many were not, for want of an acknowledgement."""
        lapsed = [event for event in self.events if isinstance(event, TransitionLapsed)]
        return sum(event.reason == UNANSWERED for event in lapsed)

    @property
    def history(self) -> list[bytes]:
        """What the run decided and did, without times, what depends on them (the standing of the
        server's copy, and which checkpoints were written in time), and who wrote it."""
        passing = (RunStarted, ReplicaChanged, CheckpointWritten, *OF_WRITERS)
        events = (event for event in self.events if not isinstance(event, passing))
        return [encode_event(msgspec.structs.replace(event, time=0.0)) for event in events]


def read_log(run: Path) -> Logged:
    """The journal in the directory ``run``, whoever was killed while writing it."""
    path, records, valid = run / JOURNAL, [], 0
    if not path.exists():
        return Logged((), 0)
    verifier = ChainVerifier()
    with path.open("rb") as file:
        try:
            for offset, segment in read_frames(file):
                records += verifier.accept(segment, offset + LENGTH.size)
                valid = offset + LENGTH.size + len(segment)
        except ChainError:
            pass  # The torn end of a write.
    return Logged(records, path.stat().st_size - valid)


def segments(run: Path) -> list[bytes]:
    """The segments of the journal in the directory ``run``, but for a torn one at its end."""
    path = run / JOURNAL
    if not path.exists():
        return []
    with path.open("rb") as file:
        return [segment for _, segment in read_frames(file, growing=True)]
