"""The table of the README: host alone, grown, and the grown shape from the start, over seeds.

Each seed is a whole ``esper train`` of the config, journal and server included. Intervals are
Student's t over the seeds, the two differences paired by seed.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from esper.tolaria.config import read, with_seed
from esper.tolaria.observer import Outcome, Silent

CONFIG = Path(__file__).resolve().parents[1] / "examples" / "digits.toml"


def run(config_file: Path, directory: Path, seed: int) -> Outcome:
    """One run of the config with this seed, kept in ``directory``."""
    from esper.tolaria.trainer import train

    os.environ["ESPER_WORKSPACE"] = str(directory / "workspace")
    return train(
        with_seed(read(config_file), seed),
        run_dir=directory / f"seed-{seed}",
        nats=None,
        seed=seed,
        observer=Silent(),
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval; the half-width is nan for a single value."""
    from scipy import stats

    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return mean, math.nan
    error = statistics.stdev(values) / math.sqrt(count)
    return mean, float(stats.t.ppf(0.975, count - 1)) * error


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """The lines of the table, in Markdown."""
    lines = [
        "| seed | host alone, % | grown, % | same shape from the start, % | parameters |",
        "|---:|---:|---:|---:|---:|",
    ]
    for seed, one in enumerate(outcomes):
        lines.append(
            f"| {seed} | {one.control_accuracy:.2f} | {one.test_accuracy:.2f} | "
            f"{one.static_accuracy:.2f} | {one.control_parameters:,} to {one.parameters:,} |"
        )
    columns = (
        [one.control_accuracy for one in outcomes],
        [one.test_accuracy for one in outcomes],
        [one.static_accuracy for one in outcomes],
    )
    cells = " | ".join("{:.2f} +- {:.2f}".format(*interval(column)) for column in columns)
    size = statistics.fmean(one.parameters for one in outcomes)
    lines.append(f"| mean | {cells} | mean {size:,.0f} |")
    return lines


def differences(outcomes: Sequence[Outcome]) -> list[str]:
    """The two comparisons that matter, paired by seed."""
    against = {
        "the host alone": [one.test_accuracy - one.control_accuracy for one in outcomes],
        "the same shape from the start": [
            one.test_accuracy - one.static_accuracy for one in outcomes
        ],
    }
    return [
        "grown minus {}: {:+.2f} +- {:.2f} points".format(name, *interval(values))
        for name, values in against.items()
    ]


def main() -> None:
    """Print the table for a config over the first seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, nargs="?", default=CONFIG)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="esper-table-") as directory:
        pool = ProcessPoolExecutor(chosen.jobs, mp_context=get_context("spawn"))
        with pool:
            one = partial(run, chosen.config, Path(directory))
            outcomes = list(pool.map(one, range(chosen.seeds)))
    steps = outcomes[0].steps
    print(f"{chosen.config.name}, {steps:,} steps, test accuracy, 95 % intervals over the seeds\n")
    print("\n".join(table(outcomes)))
    print()
    print("\n".join(differences(outcomes)))


if __name__ == "__main__":
    main()
