"""What the log costs the training thread of a real run: handing events over, of its whole time.

A run of the config is trained with its log as `esper train` opens it. Each call by which the
training thread hands events or objects over is timed, by the wall and by the thread's own
processor time, which other processes on the machine do not lengthen.

    python -m benchmarks.bench_handover [--config FILE ...] [--steps N]
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.commands import copied, parser
from esper.log.event_log import EventLog
from esper.tolaria.config import read
from esper.tolaria.growth import Growth
from esper.tolaria.observer import Silent
from esper.tolaria.trainer import grow


class Times:
    """Seconds of each call of one kind in the training thread, by wall and by its processor."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._thread = threading.get_ident()
        self.wall: list[float] = []
        self.processor: list[float] = []

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        if threading.get_ident() != self._thread:
            return self._function(*arguments, **more)
        used, begin = time.thread_time(), time.perf_counter()
        try:
            return self._function(*arguments, **more)
        finally:
            self.wall.append(time.perf_counter() - begin)
            self.processor.append(time.thread_time() - used)

    def bound(self) -> Any:
        """As a method."""
        return lambda *arguments, **more: self(*arguments, **more)


def measure(config: Path, directory: Path) -> None:
    """Train, and print what there is to tell."""
    append, keep = Times(EventLog.append), Times(EventLog.keep)
    step = Times(Growth.step)
    with (
        mock.patch.object(EventLog, "append", append.bound()),
        mock.patch.object(EventLog, "keep", keep.bound()),
        mock.patch.object(Growth, "step", step.bound()),
    ):
        begin, used = time.perf_counter(), time.thread_time()
        grow(read(config), run_dir=directory / "run", nats=None, seed=0, observer=Silent())
        wall, processor = time.perf_counter() - begin, time.thread_time() - used
    steps = len(step.wall)
    print(f"{config.stem}: {steps:,} steps, {len(append.wall):,} calls of append")
    for name, times in (("append", append), ("keep", keep)):
        for clock, taken in (("wall", times.wall), ("processor", times.processor)):
            ordered = sorted(taken)
            p50, p99 = (ordered[len(ordered) * q // 100] * 1e6 for q in (50, 99))
            most = ordered[-1] * 1e6
            print(f"  {name}, {clock}: p50 {p50:.1f} us, p99 {p99:.1f} us, most {most:.1f} us")
    share = (sum(append.processor) + sum(keep.processor)) / processor
    print(f"  of the thread's processor time {share:.4%}, of the wall ", end="")
    print(f"{(sum(append.wall) + sum(keep.wall)) / wall:.4%}")


def main() -> None:
    """Measure each config."""
    options = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="esper-handover-") as name:
        directory = Path(name)
        os.environ["ESPER_WORKSPACE"] = str(directory / "workspace")
        for config in options.config:
            measure(copied(config, directory, options.steps), directory / config.stem)


if __name__ == "__main__":
    main()
