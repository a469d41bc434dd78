"""What the kill campaign trains: a small network on digits that grows twice within 240 steps."""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.forks import FORK, Process
from benchmarks.kill_place import Place, machines, read_log, server_ended
from benchmarks.kill_points import Diary, Point, Points, Strike, install
from esper.log.errors import FencedError, RunEndedError
from esper.log.takeover import Lease
from esper.log.workspace import VARIABLE
from esper.tolaria.config import Config, parse
from esper.tolaria.observer import Grown, Silent
from esper.tolaria.trainer import grow

PATIENCE_SECONDS = 120.0
"""A process that takes longer hangs: it ends with the stacks of its threads in its output."""
FENCED, ENDED = 75, 76
"""Exit codes of a process that trains under a lease: another has the run; it has ended."""

_CONFIG = """
[run]
steps = 240
checkpoint_every = 15
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
    """Whether decisions wait for the log, whose acknowledgement counts, and whether machines take
    the run over from each other.

    Where decisions do not wait, the log has so little time that what a killed server holds up
    lapses.
    """

    sync: bool
    ack: Literal["journal", "jetstream"]
    taken_over: bool = False

    def __str__(self) -> str:
        name = f"{'sync' if self.sync else 'async'}, {self.ack}"
        return f"{name}, taken over" if self.taken_over else name

    def config(self) -> Config:
        """The config of its runs."""
        sync, timeout = ("true", 60.0) if self.sync else ("false", 0.2)
        return parse(_CONFIG.format(sync=sync, timeout=timeout, ack=self.ack), Path())


MODES = (
    *(Mode(sync, ack) for sync in (True, False) for ack in ("journal", "jetstream")),
    *(Mode(sync, "jetstream", taken_over=True) for sync in (True, False)),
)


class Result(msgspec.Struct, frozen=True):
    """The end of a run, and how many points of each kind its process came to."""

    grown: Grown
    census: dict[str, int]


def start(
    place: Place,
    mode: Mode,
    seed: int,
    strikes: Sequence[Strike] = (),
    *,
    resume: bool = False,
    lease: Lease | None = None,
) -> Process:
    """Begin, resume or take over the run of ``place`` in a fork of this process, which has one
    thread."""
    process = FORK.Process(target=_train, args=(place, mode, seed, strikes, resume, lease))
    process.start()
    return process


def _train(
    place: Place,
    mode: Mode,
    seed: int,
    strikes: Sequence[Strike],
    resume: bool,
    lease: Lease | None,
) -> None:
    with place.output.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    faulthandler.dump_traceback_later(PATIENCE_SECONDS, exit=True)
    os.environ[VARIABLE] = str(place.workspace)
    diary = Diary(place.diary)
    points = Points(place.base, place.server, diary, strikes)
    install(points, diary)
    try:
        grown = grow(
            mode.config(),
            run_dir=place.run,
            nats=None,
            seed=seed,
            observer=_Listener(diary),
            resume=resume,
            lease=lease,
        )
    except FencedError:
        sys.exit(FENCED)
    except RunEndedError:
        if lease is None:
            raise
        sys.exit(ENDED)
    place.result.write_bytes(msgspec.json.encode(Result(grown, dict(points.census))))


class _Listener(Silent):
    """Keeps in the diary from which step a resumed run goes on."""

    def __init__(self, diary: Diary) -> None:
        self._diary = diary

    def resumed(self, step: int) -> None:
        self._diary.resumed(step)


@dataclass(frozen=True)
class Whole:
    """A run that nobody killed: what those that are killed are drawn from and compared with.

    Where decisions wait for the log, all of this seed must be this run. ``points`` are those that a
    process comes to from its start to its end, ``points_taken_over`` also those of one that takes
    the run over.
    """

    seed: int
    seconds: float
    points: dict[str, int]
    points_taken_over: dict[str, int]
    final_weights: str
    history: list[bytes]


def whole(base: Path, seed: int) -> Whole:
    """Train a run from its start to its end, below ``base``.

    Raises ``RuntimeError`` when it fails, or when nothing grows.
    """
    place = Place(base / "whole")
    place.server.mkdir(parents=True, mode=0o700)
    begun = time.perf_counter()
    result = _ended(start(place, Mode(sync=True, ack="jetstream"), seed), place)
    seconds = time.perf_counter() - begun
    if result.grown.log_failure or not result.grown.fossils:
        raise RuntimeError(f"the run of seed {seed} went wrong: {result.grown}")
    taken_over = Counter(result.census) | _taken_over(base / "taken over", seed)
    history = read_log(place.run).history
    weights = result.grown.final_weights
    return Whole(seed, seconds, result.census, dict(taken_over), weights, history)


def _taken_over(base: Path, seed: int) -> Counter[str]:
    """The points that a machine comes to which takes over what another has left unsent."""
    mode = Mode(sync=True, ack="jetstream", taken_over=True)
    first = Place(base)
    first.server.mkdir(parents=True, mode=0o700)
    _, second = machines(base, 2)
    strike = Strike("both", Point("pwrite run-*/journal/segments", 20))
    process = start(first, mode, seed, [strike], lease=Lease(0, "machine 0", "run"))
    process.join()
    process = start(second, mode, seed, lease=Lease(1, "machine 1", "run"))
    return Counter(_ended(process, second).census)


def _ended(process: Process, place: Place) -> Result:
    process.join()
    if process.exitcode:
        raise RuntimeError(f"a run that nobody killed failed: {place.output.read_text()[-2000:]}")
    server_ended(place)
    return msgspec.json.decode(place.result.read_bytes(), type=Result)
