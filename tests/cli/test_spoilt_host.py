"""A host that spoils itself: ``esper train`` brings it back, and ends where that is no use."""

from __future__ import annotations

from pathlib import Path

from support.command import esper

CONFIG = """
[run]
steps = 200
checkpoint_every = 20
[data]
name = "digits"
[model]
factory = "bomb:make"
[optimizer]
lr = 1e-2
[growth]
observe_every = 20
max_growths = 0
sync_decisions = true
"""
BOMB = """
import torch
from torch import nn

passes = 0


class Bomb(nn.Sequential):
    def forward(self, x):
        global passes
        y = super().forward(x)
        if self.training and torch.is_grad_enabled():
            passes += 1
            y = y * float("nan") if {when} else y
        return y


def make():
    return Bomb(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
"""


def trained(place: Path, when: str) -> tuple[int, str]:
    (place / "bomb.py").write_text(BOMB.format(when=when))
    (place / "own.toml").write_text(CONFIG)
    done = esper(place, "train", "own.toml", "--run-dir", "run", "--no-controls")
    return done.returncode, done.stdout + done.stderr


def test_it_goes_back_and_its_log_runs_again_to_the_same_bits(tmp_path: Path) -> None:
    code, told = trained(tmp_path, "passes == 70")
    assert code == 0, told
    assert "the host is spoilt: held-out loss is nan, where it was " in told
    assert "step 81    the host is back at step 60, 21 steps lost" in told
    again = esper(tmp_path, "rerun", "run")
    assert again.returncode == 0, again.stderr
    assert "identical" in again.stdout


def test_a_run_that_cannot_be_brought_back_ends_and_says_why(tmp_path: Path) -> None:
    code, told = trained(tmp_path, "passes >= 70")
    assert code == 3
    last = told.splitlines()[-1]
    assert last.startswith("esper: the run in run has failed: held-out loss is nan, where it was ")
    assert "no checkpoint is left to go back to (2 times to step 60, 2 times to step 40)" in last
    assert esper(tmp_path, "verify", "run").returncode == 0
