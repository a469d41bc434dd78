"""The kill campaign: runs killed at random moments, resumed, and held to the bits of one that
nothing interrupted and to a re-run of their own log.

Each trial starts ``esper train`` as a process of its own, kills it with SIGKILL after a random part
of the whole run's time, resumes it (killing the resumed one too in every third trial), then
verifies and re-runs its log. The kills go in turn over the configs, which need
``sync_decisions = true``: without, no two runs decide at the same steps.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.commands import EXAMPLES, Popen, copied, esper, parser, told


@dataclass(frozen=True)
class Whole:
    """The run of a config that nothing interrupts: its final bits, and how long it took."""

    config: Path
    final_weights: str
    seconds: float


def whole(directory: Path, config: Path) -> Whole:
    """Train ``config`` from its start to its end."""
    start = time.perf_counter()
    done = told(train(directory, config, f"{config.stem}-whole"))
    return Whole(config, done["final_weights"], time.perf_counter() - start)


def train(directory: Path, config: Path, name: str) -> Popen:
    """Start a run of ``config`` that is kept under ``name``."""
    return esper(directory, "train", config, "--run-dir", name, "--no-controls", "--json")


def resume(directory: Path, name: str) -> Popen:
    """Start to go on with the run ``name``."""
    return esper(directory, "train", "--resume", name, "--no-controls", "--json")


def killed(process: Popen, after: float) -> bool:
    """Kill ``process`` after so many seconds; False when it had ended by itself."""
    try:
        process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True
    return False


def cut_short(directory: Path, run: Whole, name: str, draw: random.Random) -> None:
    """Start a run and kill it at a random moment after its log has begun."""
    while True:
        if killed(train(directory, run.config, name), draw.uniform(0.1, 1.0) * run.seconds):
            segments = directory / name / "journal" / "segments"
            if segments.exists() and segments.stat().st_size > 0:
                return
        shutil.rmtree(directory / name, ignore_errors=True)


def trial(directory: Path, number: int, run: Whole) -> str:
    """Kill and resume one run; the empty string when all holds, else what does not."""
    draw, name = random.Random(number), f"{run.config.stem}-{number}"
    cut_short(directory, run, name, draw)
    if number % 3 == 0:
        killed(resume(directory, name), draw.random() * run.seconds)
    if not told(esper(directory, "verify", name, "--json"))["ended"]:
        told(resume(directory, name))
    if not told(esper(directory, "verify", name, "--json"))["ended"]:
        return "its log has no end"
    again = told(esper(directory, "rerun", name, "--json"), good=(0, 1))
    if not again["identical"]:
        return f"a re-run of its log has other bits: {again['difference']}"
    if again["logged_weights"] != run.final_weights:
        return "its bits are not those of the run that nothing interrupted"
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; exit 1 when any run does not end as it must."""
    options = parser(__doc__, EXAMPLES[:1])
    options.add_argument("--kills", type=int, default=20, help="in turn over the configs")
    chosen = options.parse_args(arguments)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="esper-kills-") as place:
        directory = Path(place)
        configs = [copied(config, directory, chosen.steps) for config in chosen.config]
        runs = [whole(directory, config) for config in configs]
        for number in range(chosen.kills):
            run = runs[number % len(runs)]
            start = time.perf_counter()
            problem = trial(directory, number, run)
            bad += bool(problem)
            print(
                f"kill {number}, {run.config.stem}: {problem or 'ends as it must'} "
                f"({time.perf_counter() - start:.0f} s)",
                flush=True,
            )
    print(
        f"{chosen.kills} runs killed at random moments and resumed: "
        f"{chosen.kills - bad} end as they must"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
