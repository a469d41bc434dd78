"""Running ``esper`` as a person does: as a process of its own."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SMALL = """
[run]
steps = 420
[data]
name = "digits"
[model]
hidden = [4]
[optimizer]
lr = 1e-2
[growth]
observe_every = 20
warmup = 60
patience = 2
plateau = 0.9
trials = 3
trial_steps = 60
rungs = 1
blend_steps = 30
stabilize_steps = 20
evaluate_steps = 100
lead = 5
sync_decisions = true
blueprints = ["widen"]
max_growths = 1
"""
"""A config that grows, surely, within a second or two of training."""


def environment(workspace: Path) -> dict[str, str]:
    """This process's environment, with Esper importable and a workspace of the test's own.

    Output is buffered, as it is for a person: what cannot be written is then found at the end.
    """
    paths = [str(ROOT), str(ROOT / "events"), os.environ.get("PYTHONPATH", "")]
    inherited = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "ESPER_WORKSPACE": str(workspace),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
    }


def command(*arguments: str | Path) -> list[str]:
    """The command line of ``esper`` with these arguments."""
    return [sys.executable, "-m", "esper.cli.main", *(str(argument) for argument in arguments)]


def in_shell(
    directory: Path, tail: str, *arguments: str | Path, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run ``esper`` in ``directory`` through bash, with ``tail`` behind its command line: where
    its output goes. ``more`` joins its environment."""
    return subprocess.run(
        ["bash", "-c", f"{shlex.join(command(*arguments))} {tail}"],
        cwd=directory,
        env=environment(directory / "workspace") | more,
        capture_output=True,
        text=True,
        timeout=120,
    )


def esper(directory: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``esper`` in ``directory``, its workspace there too."""
    return subprocess.run(
        command(*arguments),
        cwd=directory,
        env=environment(directory / "workspace"),
        capture_output=True,
        text=True,
        timeout=120,
    )


def heed_signals() -> None:
    """To be called in the child that is to be signalled: what runs in the background inherits
    ignored signals, and rightly goes on ignoring them."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
