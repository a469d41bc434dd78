"""The tables of the README: host alone, grown, and the grown shape from the start, over seeds.

Each seed is a whole ``esper train`` of the config, journal and server included. Intervals are
Student's t over the seeds, the two differences paired by seed. What was measured is kept as JSON
in ``benchmarks/results``.

Usage: ``python -m benchmarks.table examples/digits.toml --seeds 10``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from esper.cli.summary import bits
from esper.tolaria.config import read, with_seed
from esper.tolaria.observer import Outcome, Part, Silent
from esper_events.events import TransitionApplied, TransitionDecided
from esper_events.reader import LogReader
from esper_events.stages import BLENDED, Stage

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Row:
    """One seed: test accuracies in percent, test losses in nats, sizes, and what growth cost.

    ``shadow_passes`` counts the steps of all seeds in TRAINING, ``fork_steps`` those of all
    forks, ``grafts`` the seeds that were blended, ``seconds`` the time of each training.
    """

    seed: int
    data: str
    steps: int
    host_accuracy: float
    grown_accuracy: float
    static_accuracy: float
    host_loss: float
    grown_loss: float
    static_loss: float
    host_parameters: int
    grown_parameters: int
    shadow_passes: int
    fork_steps: int
    grafts: int
    fossils: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Measure:
    """What a data set is judged by, and how it is written."""

    name: str
    unit: str
    digits: int

    def of(self, row: Row) -> tuple[float, float, float]:
        """Of host alone, grown, and the grown shape from the start."""
        if row.data == "characters":
            return bits(row.host_loss), bits(row.grown_loss), bits(row.static_loss)
        return row.host_accuracy, row.grown_accuracy, row.static_accuracy

    def told(self, value: float, sign: str = "") -> str:
        """A figure with as many digits as mean something."""
        return f"{value:{sign}.{self.digits}f}"


class Clock(Silent):
    """Keeps when each training of a run began."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}

    def part(self, name: Part, steps: int) -> None:
        """A training begins."""
        self.began[name] = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """How long each training took, the last one until now."""
        ends = [*list(self.began.values())[1:], time.perf_counter()]
        begun = zip(self.began.items(), ends, strict=True)
        return {name: round(end - start, 1) for (name, start), end in begun}


def run(config_file: Path, directory: Path, seed: int) -> Row:
    """One run of the config with this seed, kept in ``directory``."""
    from esper.tolaria.trainer import train

    os.environ["ESPER_WORKSPACE"] = str(directory / "workspace")
    run_dir, clock = directory / f"seed-{seed}", Clock()
    config = with_seed(read(config_file), seed)
    outcome = train(config, run_dir=run_dir, nats=None, seed=seed, observer=clock)
    return _row(seed, outcome, run_dir, clock.seconds())


def _row(seed: int, outcome: Outcome, run_dir: Path, seconds: dict[str, float]) -> Row:
    shadow, blended = stage_steps(run_dir)
    return Row(
        seed=seed,
        data=outcome.data,
        steps=outcome.steps,
        host_accuracy=outcome.control_accuracy,
        grown_accuracy=outcome.test_accuracy,
        static_accuracy=outcome.static_accuracy,
        host_loss=outcome.control_loss,
        grown_loss=outcome.test_loss,
        static_loss=outcome.static_loss,
        host_parameters=outcome.control_parameters,
        grown_parameters=outcome.parameters,
        shadow_passes=sum(shadow.values()),
        fork_steps=sum(blended.values()),
        grafts=len(blended),
        fossils=outcome.fossils,
        seconds=seconds,
    )


def stage_steps(run_dir: Path) -> tuple[dict[int, int], dict[int, int]]:
    """Steps that each seed of a run was in TRAINING, and blended."""
    decided: dict[int, TransitionDecided] = {}
    entered: dict[int, tuple[Stage, int]] = {}
    shadow: dict[int, int] = {}
    blended: dict[int, int] = {}
    for record in LogReader(run_dir).records():
        event = record.event
        if isinstance(event, TransitionDecided):
            decided[event.decision] = event
        if not isinstance(event, TransitionApplied):
            continue
        seed, target = decided[event.decision].seed, decided[event.decision].target
        stage, since = entered.get(seed, (Stage.DORMANT, event.step))
        if stage is Stage.TRAINING:
            shadow[seed] = event.step - since
        elif stage in BLENDED:
            blended[seed] = blended.get(seed, 0) + event.step - since
        entered[seed] = (target, event.step)
    return shadow, blended


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval; the half-width is nan for a single value."""
    from scipy import stats

    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return mean, math.nan
    error = statistics.stdev(values) / math.sqrt(count)
    return mean, float(stats.t.ppf(0.975, count - 1)) * error


def measure_of(data: str) -> Measure:
    """Bits per character for text, accuracy for everything else."""
    if data == "characters":
        return Measure("bits per character (lower is better)", "bits per character", 3)
    return Measure("test accuracy, %", "points", 2)


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of the table, in Markdown."""
    measure = measure_of(rows[0].data)
    lines = [
        "| seed | host alone | grown | same shape from the start | parameters |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = " | ".join(measure.told(value) for value in measure.of(row))
        size = f"{row.host_parameters:,} to {row.grown_parameters:,}"
        lines.append(f"| {row.seed} | {cells} | {size} |")
    columns = zip(*(measure.of(row) for row in rows), strict=True)
    cells = " | ".join(_told(measure, interval(column)) for column in columns)
    mean_size = statistics.fmean(row.grown_parameters for row in rows)
    return [*lines, f"| mean | {cells} | mean {mean_size:,.0f} |"]


def comparison(rows: Sequence[Row]) -> list[str]:
    """The two differences that matter, paired by seed, and what growth cost."""
    measure = measure_of(rows[0].data)
    figures = [measure.of(row) for row in rows]
    against = {
        "the host alone": [grown - host for host, grown, _ in figures],
        "the same shape from the start": [grown - static for _, grown, static in figures],
    }
    lines = [
        f"grown minus {name}: {_told(measure, interval(values), '+')} {measure.unit}"
        for name, values in against.items()
    ]
    mean = statistics.fmean
    passes, forks = mean(r.shadow_passes for r in rows), mean(r.fork_steps for r in rows)
    grafts, fossils = sum(r.grafts for r in rows), sum(r.fossils for r in rows)
    seconds = "; ".join(
        f"{name} {mean([r.seconds[name] for r in rows if name in r.seconds]):,.0f} s"
        for name in rows[0].seconds
    )
    return [
        *lines,
        f"cost of growth, mean of the seeds: {passes:,.0f} shadow passes and {forks:,.0f} steps "
        f"of forks beside {rows[0].steps:,} steps; {grafts} grafts, {fossils} of them kept",
        f"wall time, mean of the seeds: {seconds}",
    ]


def _told(measure: Measure, value: tuple[float, float], sign: str = "") -> str:
    return f"{measure.told(value[0], sign)} ± {measure.told(value[1])}"


def keep(config_file: Path, rows: Sequence[Row]) -> Path:
    """Write what was measured, with the config that it was measured on."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{config_file.stem}.json"
    kept = {"config": config_file.read_text(), "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(kept, indent=1) + "\n")
    return path


def main() -> None:
    """Print the table for a config over seeds, and keep it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-json", action="store_true", help="print only")
    chosen = parser.parse_args()
    seeds = range(chosen.first, chosen.first + chosen.seeds)
    with tempfile.TemporaryDirectory(prefix="esper-table-") as directory:
        pool = ProcessPoolExecutor(chosen.jobs, mp_context=get_context("spawn"))
        with pool:
            rows = list(pool.map(partial(run, chosen.config, Path(directory)), seeds))
    measure = measure_of(rows[0].data)
    print(f"{chosen.config.name}, {rows[0].steps:,} steps, {measure.name}, 95 % intervals\n")
    print("\n".join([*table(rows), "", *comparison(rows)]))
    if not chosen.no_json:
        print(f"kept in {keep(chosen.config, rows)}")


if __name__ == "__main__":
    main()
