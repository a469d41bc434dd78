"""The null test of the fork gate: a frozen random seed must not survive it.

A host of its own is trained, a seed of frozen random weights is taken through germination,
grafting and stabilization with the shadow gate held open, and the fork gate decides. On two
tasks: digits, and MNIST-1D with its pixels shuffled. Every one that is kept is a false positive.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from esper.blueprints.ir import Blueprint, Linear, Size
from esper.kasmina.isolation import seed_everything
from esper.log.event_log import EventLog
from esper.log.memory import MemoryStore
from esper.tamiyo.interface import Advance, Germinate, Observation, Proposal
from esper.tolaria.config import DataSettings
from esper.tolaria.data import Splits, load
from esper.tolaria.growth import Growth
from esper.tolaria.models import mlp
from esper.tolaria.sections import DataName
from esper.tolaria.settings import GrowthSettings
from esper.tolaria.training import (
    batches_of,
    classification_loss,
    endless_batches,
    train_steps,
)
from esper_events.events import GateMeasured
from esper_events.keys import SigningKey
from esper_events.stages import Gate

FROZEN = {
    source: Blueprint(
        name=f"frozen_random_{source}",
        source=source,
        nodes=(Linear(0, Size("out"), init="normal", trainable=False),),
    )
    for source in ("output", "span")
}
"""A linear map with random weights that nothing ever trains."""

SETTINGS = GrowthSettings(
    observe_every=25, lead=1, sync_decisions=True, shadow_confidence=1e-9, stability_band=1e9
)
"""The fork gate as it is by default; the gates before it are held open, and the log is waited
for, so that a trial depends on its seed alone."""


@dataclass(frozen=True)
class Task:
    """A data set and a host for it."""

    data: DataName
    hidden: tuple[int, ...]
    before: int


TASKS = {
    "digits": Task("digits", (8, 8), before=600),
    "mnist1d_shuffled": Task("mnist1d_shuffled", (16, 16), before=600),
}


@dataclass(frozen=True)
class Verdict:
    """The fork gate's decision about one frozen seed; a gain of minus infinity tells that the
    training loss exploded before, and the fork went on in the host's place."""

    slot: str
    kept: bool
    gain: float
    lower: float


class OneSeed:
    """A controller that germinates one seed in one slot and asks gate after gate."""

    def __init__(self, slot: str, blueprint: str, start: int) -> None:
        self._wanted = Germinate(slot, blueprint, "null test")
        self._start = start
        self._done = False

    def decide(self, observation: Observation) -> list[Proposal]:
        """Germinate once, then advance whenever the next gate can be asked."""
        if observation.step >= self._start and not self._done:
            self._done = True
            return [self._wanted]
        return [
            Advance(seed.id, "null test")
            for seed in observation.seeds
            if seed.ready and not seed.pending
        ]


def run_trial(task: Task, splits: Splits, seed: int) -> Verdict:
    """Take one frozen random seed to the fork gate."""
    seed_everything(seed)
    model = mlp(splits.features, task.hidden, splits.classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    slot, blueprint = _place(model, seed)
    settings = SETTINGS
    growth = Growth(
        model,
        optimizer,
        classification_loss(model),
        batches_of(splits.probe, 16),
        confirm=batches_of(splits.confirm, 16),
        settings=settings,
        controller=OneSeed(slot, blueprint, task.before),
        library=tuple(FROZEN.values()),
        log=EventLog(MemoryStore(), SigningKey.generate(), f"null-{seed}"),
        seed=seed,
    )
    blended = settings.blend_steps + settings.stabilize_steps + settings.evaluate_steps
    steps = task.before + blended + 20 * settings.observe_every
    batches = endless_batches(splits.train, 32, seed)
    decided: list[GateMeasured] = []

    def after_step(_: int, batch: Any, loss: torch.Tensor) -> None:
        growth.step(batch, loss)

    while not decided and steps > 0:
        train_steps(model, optimizer, batches, settings.observe_every, after_step)
        steps -= settings.observe_every
        decided = _fork_verdicts(growth)
    growth.close()
    if not decided:
        return Verdict(slot, kept=False, gain=-math.inf, lower=-math.inf)
    verdict = decided[0]
    return Verdict(slot, verdict.passed, verdict.figures["gain"], verdict.figures["lower"])


def _place(model: nn.Module, seed: int) -> tuple[str, str]:
    """The slots of an MLP in turn: the output of each layer, and each span of layers."""
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    spans = [f"{a}..{b}" for i, a in enumerate(layers) for b in layers[i:]]
    slot = (layers + spans)[seed % (len(layers) + len(spans))]
    return slot, FROZEN["span" if ".." in slot else "output"].name


def _fork_verdicts(growth: Growth) -> list[GateMeasured]:
    events = (record.event for record in growth.records())
    return [e for e in events if isinstance(e, GateMeasured) and e.gate is Gate.FORK]


def run_campaign(name: str, trials: int, *, report: bool = True) -> list[Verdict]:
    """``trials`` frozen seeds on the task ``name``; prints one line for each that is kept."""
    task = TASKS[name]
    splits = load(DataSettings(name=task.data))
    verdicts = []
    for seed in range(trials):
        verdict = run_trial(task, splits, seed)
        verdicts.append(verdict)
        if report and verdict.kept:
            print(
                f"{name}: seed {seed} in {verdict.slot} was KEPT: gain {verdict.gain:.1%}, "
                f"lower end {verdict.lower:.1%}",
                flush=True,
            )
    return verdicts


def main() -> int:
    """Run both tasks and print a line for each; exit 1 when fewer than 95 % are culled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    trials = parser.parse_args().trials
    torch.set_num_threads(1)
    good = True
    for name in TASKS:
        begun = time.perf_counter()
        verdicts = run_campaign(name, trials)
        culled = sum(not verdict.kept for verdict in verdicts)
        exploded = sum(verdict.gain == -math.inf for verdict in verdicts)
        gains = [verdict.gain for verdict in verdicts]
        print(
            f"{name}: {culled} of {trials} frozen random seeds culled, {exploded} of them before "
            f"the fork gate; gain over the fork: median {median(gains):.1%}, best {max(gains):.1%} "
            f"({time.perf_counter() - begun:.0f} s)"
        )
        good = good and culled >= 0.95 * trials
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
