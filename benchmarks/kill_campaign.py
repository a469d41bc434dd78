"""The kill campaign: runs killed at random moments, resumed, and held to the bits of one that
nothing interrupted and to a re-run of their own log.

Each trial starts ``esper train`` on the digits example as a process of its own, kills it with
SIGKILL after a random part of the whole run's time, resumes it (killing the resumed one too in
every third trial), then verifies and re-runs its log.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).resolve().parents[1] / "examples" / "digits.toml"
STEPS = 1800


def esper(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start ``esper`` in ``directory`` with a workspace there."""
    environment = {**os.environ, "ESPER_WORKSPACE": str(directory / "workspace")}
    return subprocess.Popen(
        [sys.executable, "-m", "esper.cli.main", *arguments],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The JSON object that a command ends with.

    Raises:
        RuntimeError: it ended with another exit code than 0.
    """
    out, err = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"exit code {process.returncode}: {err[-500:]}")
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def killed(process: subprocess.Popen[str], after: float) -> bool:
    """Kill ``process`` after so many seconds; False when it had ended by itself."""
    try:
        process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True
    return False


def cut_short(directory: Path, draw: random.Random, seconds: float, *arguments: str) -> None:
    """Start a run and kill it at a random moment after its log has begun."""
    while True:
        name = directory / arguments[-2]
        if killed(esper(directory, *arguments), draw.uniform(0.2, 1.0) * seconds):
            segments = name / "journal" / "segments"
            if segments.exists() and segments.stat().st_size > 0:
                return
        shutil.rmtree(name, ignore_errors=True)


def trial(directory: Path, number: int, whole: dict[str, Any], seconds: float) -> str:
    """Kill and resume one run; the empty string when all holds, else what does not."""
    draw, name = random.Random(number), f"run-{number}"
    cut_short(directory, draw, seconds, "train", "short.toml", "--run-dir", name, "--json")
    if number % 3 == 0:
        killed(esper(directory, "train", "--resume", name, "--json"), draw.random() * seconds / 2)
    if not told(esper(directory, "verify", name, "--json"))["ended"]:
        told(esper(directory, "train", "--resume", name, "--json"))
    if not told(esper(directory, "verify", name, "--json"))["ended"]:
        return "its log has no end"
    again = told(esper(directory, "rerun", name, "--json"))
    if not again["identical"]:
        return "a re-run of its log has other bits"
    if again["logged_weights"] != whole["final_weights"]:
        return "its bits are not those of the run that nothing interrupted"
    return ""


def main() -> int:
    """Run the campaign; exit 1 when any run does not end as it must."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=20)
    kills = parser.parse_args().kills
    bad = 0
    with tempfile.TemporaryDirectory(prefix="esper-kills-") as place:
        directory = Path(place)
        text = CONFIG.read_text().replace("steps = 4000", f"steps = {STEPS}")
        (directory / "short.toml").write_text(text)
        start = time.perf_counter()
        whole = told(esper(directory, "train", "short.toml", "--run-dir", "whole", "--json"))
        seconds = time.perf_counter() - start
        for number in range(kills):
            problem = trial(directory, number, whole, 0.5 * seconds)
            bad += bool(problem)
            if problem:
                print(f"kill {number}: {problem}", flush=True)
    print(f"{kills} runs killed at random moments and resumed: {kills - bad} end as they must")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
