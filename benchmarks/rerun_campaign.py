"""The re-run campaign: is every run trained again from its log to the same bits?

Each run is an ``esper train`` of one of the configs with a seed of its own, its log is then
trained again by ``esper rerun`` in another process, and the final weights of the two are compared,
and with them every digest that the log holds.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.commands import copied, esper, parser, told


@dataclass(frozen=True)
class Trial:
    """One run and its re-run; ``problem`` is empty where they are one."""

    config: str
    seed: int
    steps: int
    events: int
    parameters: int
    checked: int
    train_seconds: float
    rerun_seconds: float
    problem: str

    def row(self) -> str:
        """The trial as a row of the table."""
        return (
            f"| {self.config} | {self.seed} | {self.steps:,} | {self.events} | "
            f"{self.parameters:,} | {self.checked} | {self.train_seconds:.0f} + "
            f"{self.rerun_seconds:.0f} | {self.problem or 'identical'} |"
        )


HEADER = (
    "| example | seed | steps | events | parameters | digests compared | train + re-run, s | |\n"
    "|---|---:|---:|---:|---:|---:|---:|---|"
)


def trial(directory: Path, config: Path, seed: int) -> Trial:
    """Train ``config`` with ``seed`` below ``directory``, and train its log again."""
    name = f"{config.stem}-{seed}"
    start = time.perf_counter()
    first = told(
        esper(
            directory,
            *("train", config, "--seed", str(seed), "--run-dir", name, "--no-controls", "--json"),
        )
    )
    middle = time.perf_counter()
    again = told(esper(directory, "rerun", name, "--json"), good=(0, 1))
    end = time.perf_counter()
    problem = ""
    if not again["identical"]:
        problem = f"NOT identical: {again['difference']}"
    elif len({first["final_weights"], again["final_weights"], again["logged_weights"]}) > 1:
        problem = "NOT identical: the final weights differ"
    return Trial(
        config=config.stem,
        seed=seed,
        steps=first["steps"],
        events=first["events"],
        parameters=first["parameters"],
        checked=again["checked"],
        train_seconds=middle - start,
        rerun_seconds=end - middle,
        problem=problem,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; exit 1 when any re-run has other bits than its run."""
    options = parser(__doc__)
    options.add_argument("--runs", type=int, default=10, help="in turn over the configs")
    options.add_argument("--first", type=int, default=0, help="seed of the first run")
    chosen = options.parse_args(arguments)
    trials = []
    with tempfile.TemporaryDirectory(prefix="esper-reruns-") as place:
        directory = Path(place)
        configs = [copied(config, directory, chosen.steps) for config in chosen.config]
        print(HEADER, flush=True)
        for number in range(chosen.runs):
            config = configs[number % len(configs)]
            trials.append(trial(directory, config, chosen.first + number))
            print(trials[-1].row(), flush=True)
    good = sum(not one.problem for one in trials)
    checked = sum(one.checked for one in trials)
    print(
        f"\n{good} of {len(trials)} runs over {len(configs)} examples, trained again from their "
        f"logs, are identical; {checked:,} digests compared"
    )
    return 0 if good == len(trials) else 1


if __name__ == "__main__":
    sys.exit(main())
