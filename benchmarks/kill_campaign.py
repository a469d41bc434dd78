"""The kill campaign: runs killed at random moments, resumed, and held to the bits of one that
nothing interrupted and to a re-run of their own log.

Each trial starts ``esper train`` as a process of its own, kills it with SIGKILL after a random part
of the whole run's time, resumes it (killing the resumed one too in every third trial), then
verifies and re-runs its log, and tells how many steps were trained a second time. The kills go in
turn over the configs, which need ``sync_decisions = true``: without, no two runs decide at the same
steps.
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
from esper_events.errors import ChainError
from esper_events.reader import LogReader


@dataclass(frozen=True)
class Whole:
    """The run of a config that nothing interrupts: its final bits, the seconds until its log
    began, and those from there to its end."""

    config: Path
    final_weights: str
    start: float
    seconds: float


def whole(directory: Path, config: Path) -> Whole:
    """Train ``config`` from its start to its end."""
    name, start = f"{config.stem}-whole", time.perf_counter()
    process = train(directory, config, name)
    await_log(process, directory / name)
    begun = time.perf_counter()
    done = told(process)
    return Whole(config, done["final_weights"], begun - start, time.perf_counter() - begun)


def train(directory: Path, config: Path, name: str) -> Popen:
    """Start a run of ``config`` that is kept under ``name``."""
    return esper(directory, "train", config, "--run-dir", name, "--no-controls", "--json")


def resume(directory: Path, name: str) -> Popen:
    """Start to go on with the run ``name``."""
    return esper(directory, "train", "--resume", name, "--no-controls", "--json")


@dataclass(frozen=True)
class Trial:
    """``problem`` is empty when all holds; the run went on after ``resumed_at``, and its log told
    of ``head``."""

    problem: str
    resumed_at: int = 0
    head: int = 0

    @property
    def again(self) -> int:
        """Steps that were trained a second time, at least."""
        return self.head - self.resumed_at


def head(run: Path) -> int:
    """The last step that the log of ``run`` tells of."""
    try:
        return max(getattr(record.event, "step", 0) for record in LogReader(run).records())
    except (ChainError, ValueError):  # Torn by the kill, or with nothing in it.
        return 0


def await_log(process: Popen, run_dir: Path) -> None:
    """Return when the log of the run has begun, or the process has ended."""
    segments = run_dir / "journal" / "segments"
    while process.poll() is None and not (segments.exists() and segments.stat().st_size > 0):
        time.sleep(0.01)


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
        process = train(directory, run.config, name)
        await_log(process, directory / name)
        if killed(process, draw.random() * run.seconds):
            return
        shutil.rmtree(directory / name, ignore_errors=True)


def trial(directory: Path, number: int, run: Whole) -> Trial:
    """Kill and resume one run."""
    draw, name = random.Random(number), f"{run.config.stem}-{number}"
    cut_short(directory, run, name, draw)
    if number % 3 == 0:
        killed(resume(directory, name), draw.random() * (run.start + run.seconds))
    came_to, resumed_at = head(directory / name), 0
    # A kill in the middle of a write leaves a torn end, which fails until the run is resumed.
    if not told(esper(directory, "verify", name, "--json"), good=(0, 1))["ended"]:
        resumed_at = told(resume(directory, name))["resumed_at"]
    return Trial(problem_of(directory, name, run), resumed_at, max(came_to, resumed_at))


def problem_of(directory: Path, name: str, run: Whole) -> str:
    """What does not hold of a resumed run; the empty string when all does."""
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
    done: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="esper-kills-") as place:
        directory = Path(place)
        configs = [copied(config, directory, chosen.steps) for config in chosen.config]
        runs = [whole(directory, config) for config in configs]
        for number in range(chosen.kills):
            run = runs[number % len(runs)]
            start = time.perf_counter()
            done.append(trial(directory, number, run))
            last = done[-1]
            print(
                f"kill {number}, {run.config.stem}: {last.problem or 'ends as it must'}, from step "
                f"{last.resumed_at}, {last.again} steps again "
                f"({time.perf_counter() - start:.0f} s)",
                flush=True,
            )
    good = sum(not each.problem for each in done)
    kept = sum(each.resumed_at > 0 for each in done)
    print(
        f"{len(done)} runs killed at random moments and resumed: {good} end as they must; {kept} "
        f"went on from a checkpoint, {sum(each.again for each in done)} of "
        f"{sum(each.head for each in done)} steps were trained a second time"
    )
    return 0 if good == len(done) else 1


if __name__ == "__main__":
    sys.exit(main())
