"""What the kill campaign trains: a small network on digits that grows twice within 240 steps."""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.forks import FORK, Process
from benchmarks.kill_points import Diary, Points, Strike, digest, install
from esper.log.locks import FileLock
from esper.log.workspace import VARIABLE
from esper.tolaria.config import Config, parse
from esper.tolaria.decisions import UNANSWERED
from esper.tolaria.observer import Grown, Silent
from esper.tolaria.trainer import grow
from esper_events.chain import ChainVerifier
from esper_events.codec import encode_event
from esper_events.errors import ChainError
from esper_events.events import (
    CheckpointWritten,
    Event,
    KeyCertified,
    Record,
    ReplicaChanged,
    RunStarted,
    TransitionApplied,
    TransitionLapsed,
)
from esper_events.framing import JOURNAL, LENGTH, read_frames

PATIENCE_SECONDS = 120.0
"""A process that takes longer hangs: it ends with the stacks of its threads in its output."""
_SERVER_SECONDS = 20.0

_CONFIG = """
[run]
steps = 240
checkpoint_every = 5
[data]
name = "digits"
[model]
hidden = [4]
dropout = 0.1
batchnorm = true
[optimizer]
lr = 1e-2
[schedule]
kind = "cosine"
final = 0.1
[growth]
observe_every = 10
measure_every = 10
warmup = 20
patience = 2
plateau = 0.9
trials = 2
trial_steps = 16
rungs = 1
blend_steps = 8
stabilize_steps = 4
evaluate_steps = 16
embargo = 10
lead = 3
min_effect = 0.0
shadow_confidence = 0.01
blueprints = ["widen"]
sync_decisions = {sync}
ack_timeout = {timeout}
breaker_limit = 2
breaker_cooldown = 10
[log]
ack = "{ack}"
"""


@dataclass(frozen=True)
class Mode:
    """Whether decisions wait for the log, and whose acknowledgement counts.

    Where they do not wait, the log has so little time that what a killed server holds up lapses.
    """

    sync: bool
    ack: Literal["journal", "jetstream"]

    def __str__(self) -> str:
        return f"{'sync' if self.sync else 'async'}, {self.ack}"

    def config(self) -> Config:
        """The config of its runs."""
        sync, timeout = ("true", 60.0) if self.sync else ("false", 0.2)
        return parse(_CONFIG.format(sync=sync, timeout=timeout, ack=self.ack), Path())


MODES = tuple(Mode(sync, ack) for sync in (True, False) for ack in ("journal", "jetstream"))


@dataclass(frozen=True)
class Place:
    """Where a run lies, and all that belongs to it."""

    base: Path

    @property
    def run(self) -> Path:
        """The run's directory."""
        return self.base / "run"

    @property
    def workspace(self) -> Path:
        """A workspace of its own."""
        return self.base / "workspace"

    @property
    def server(self) -> Path:
        """The directory of that workspace's server."""
        return self.workspace / "server"

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


class Result(msgspec.Struct, frozen=True):
    """The end of a run, and how many points of each kind its process came to."""

    grown: Grown
    census: dict[str, int]


def start(
    place: Place, mode: Mode, seed: int, strikes: Sequence[Strike] = (), *, resume: bool = False
) -> Process:
    """Begin or resume the run of ``place`` in a fork of this process, which has one thread."""
    process = FORK.Process(target=_train, args=(place, mode, seed, strikes, resume))
    process.start()
    return process


def _train(place: Place, mode: Mode, seed: int, strikes: Sequence[Strike], resume: bool) -> None:
    with place.output.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    faulthandler.dump_traceback_later(PATIENCE_SECONDS, exit=True)
    os.environ[VARIABLE] = str(place.workspace)
    diary = Diary(place.diary)
    points = Points(place.base, place.server, diary, strikes)
    install(points, diary)
    grown = grow(
        mode.config(),
        run_dir=place.run,
        nats=None,
        seed=seed,
        observer=_Listener(diary),
        resume=resume,
    )
    place.result.write_bytes(msgspec.json.encode(Result(grown, dict(points.census))))


class _Listener(Silent):
    """Keeps in the diary from which step a resumed run goes on."""

    def __init__(self, diary: Diary) -> None:
        self._diary = diary

    def resumed(self, step: int) -> None:
        self._diary.resumed(step)


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
        """What the run decided and did, without times and what depends on them: the standing of
        the server's copy, and which checkpoints were written in time."""
        passing = (RunStarted, ReplicaChanged, CheckpointWritten, KeyCertified)
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


def server_ended(place: Place) -> bool:
    """Whether the server of the place ends, as it must when nobody needs it any more."""
    with FileLock(place.server / "server.lock") as lock:
        return lock.acquire(timeout=_SERVER_SECONDS)


@dataclass(frozen=True)
class Whole:
    """A run that nobody killed: what those that are killed are drawn from and compared with."""

    mode: Mode
    seed: int
    seconds: float
    census: dict[str, int]
    final_weights: str
    history: list[bytes]


def whole(place: Place, mode: Mode, seed: int) -> Whole:
    """Train a run from its start to its end.

    Raises ``RuntimeError`` when it fails, or when too little happens in it.
    """
    place.base.mkdir(parents=True)
    begun = time.perf_counter()
    process = start(place, mode, seed)
    process.join()
    seconds = time.perf_counter() - begun
    if process.exitcode:
        raise RuntimeError(f"a run that nobody killed failed: {place.output.read_text()[-2000:]}")
    result = msgspec.json.decode(place.result.read_bytes(), type=Result)
    if result.grown.log_failure or (mode.sync and not result.grown.fossils):
        raise RuntimeError(f"the run of seed {seed} ({mode}) went wrong: {result.grown}")
    server_ended(place)
    history = read_log(place.run).history
    return Whole(mode, seed, seconds, result.census, result.grown.final_weights, history)
