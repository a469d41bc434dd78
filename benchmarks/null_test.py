"""The null test of the fork gate: a frozen random seed must not survive it.

A host of its own is trained, a seed of frozen random weights is taken through germination,
grafting and stabilization with the shadow gate held open, and the fork gate decides. On two
tasks: digits, and MNIST-1D with its pixels shuffled; with ``--config`` on the host, data and fork
gate of any config. Every one that is kept is a false positive.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import torch

from esper.blueprints.build import applies
from esper.blueprints.ir import Blueprint, Linear, Size
from esper.kasmina.isolation import seed_everything
from esper.kasmina.slot_map import SlotMap
from esper.kasmina.slots import find_slots
from esper.log.event_log import EventLog
from esper.log.memory import MemoryStore
from esper.tamiyo.interface import Advance, Germinate, Observation, Proposal
from esper.tolaria.config import Config, parse, read
from esper.tolaria.data import Splits, load
from esper.tolaria.growth import Growth
from esper.tolaria.models import create
from esper.tolaria.settings import GrowthSettings
from esper.tolaria.training import (
    batches_of,
    classification_loss,
    endless_batches,
    make_optimizer,
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


def held_open(settings: GrowthSettings) -> GrowthSettings:
    """The fork gate of the settings; the gates before it are held open, and the log is waited
    for, so that a trial depends on its seed alone."""
    return msgspec.structs.replace(
        settings,
        observe_every=25,
        lead=1,
        sync_decisions=True,
        shadow_confidence=1e-9,
        stability_band=1e9,
    )


SETTINGS = held_open(GrowthSettings())


def _task(data: str, width: int) -> Config:
    """A host of two hidden layers, and the fork gate as it is by default."""
    return parse(
        f'[run]\nsteps = 1\n[data]\nname = "{data}"\n[model]\nhidden = [{width}, {width}]\n'
        "[optimizer]\nlr = 3e-3\n[growth]\nwarmup = 600\n",
        Path(),
    )


TASKS = {"digits": _task("digits", 8), "mnist1d_shuffled": _task("mnist1d_shuffled", 16)}
"""Seeds germinate after the steps that the warm-up takes."""


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


def run_trial(task: Config, splits: Splits, seed: int) -> Verdict:
    """Take one frozen random seed to the fork gate."""
    seed_everything(seed)
    model = create(task, splits)
    optimizer = make_optimizer(model, task.optimizer)
    loss_fn, probe = classification_loss(model), batches_of(splits.probe, 16)
    slot, blueprint = _place(find_slots(model, lambda: loss_fn(probe[0])), seed)
    settings, before = held_open(task.growth), task.growth.warmup
    growth = Growth(
        model,
        optimizer,
        loss_fn,
        probe,
        confirm=batches_of(splits.confirm, 16),
        settings=settings,
        controller=OneSeed(slot, blueprint, before),
        library=tuple(FROZEN.values()),
        log=EventLog(MemoryStore(), SigningKey.generate(), f"null-{seed}"),
        seed=seed,
    )
    blended = settings.blend_steps + settings.stabilize_steps + settings.evaluate_steps
    steps = before + blended + 20 * settings.observe_every
    batches = endless_batches(splits.train, task.run.batch_size, seed)
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


def _place(found: SlotMap, seed: int) -> tuple[str, str]:
    """The slots that a linear map fits, in turn: outputs first, then spans."""
    fitting = [
        slot.id for slot in found.slots.values() if applies(FROZEN[slot.source], slot) is None
    ]
    slot = fitting[seed % len(fitting)]
    return slot, FROZEN[found.slots[slot].source].name


def _fork_verdicts(growth: Growth) -> list[GateMeasured]:
    events = (record.event for record in growth.records())
    return [e for e in events if isinstance(e, GateMeasured) and e.gate is Gate.FORK]


def run_campaign(name: str, task: Config, trials: range, *, report: bool = True) -> list[Verdict]:
    """Frozen seeds on a task, one for each of ``trials``; prints a line for each that is kept."""
    splits = load(task.data, task.directory)
    verdicts = []
    for seed in trials:
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
    """Run the tasks and print a line for each; exit 1 when fewer than 95 % are culled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--config", type=Path, help="in place of the two tasks")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    tasks = TASKS if chosen.config is None else {chosen.config.stem: read(chosen.config)}
    trials = range(chosen.first, chosen.first + chosen.trials)
    good = True
    for name, task in tasks.items():
        begun = time.perf_counter()
        verdicts = run_campaign(name, task, trials)
        culled = sum(not verdict.kept for verdict in verdicts)
        exploded = sum(verdict.gain == -math.inf for verdict in verdicts)
        gains = [verdict.gain for verdict in verdicts]
        print(
            f"{name}: {culled} of {len(trials)} frozen random seeds culled, {exploded} of them "
            f"before the fork gate; gain over the fork: median {median(gains):.1%}, best "
            f"{max(gains):.1%} ({time.perf_counter() - begun:.0f} s)"
        )
        good = good and culled >= 0.95 * len(trials)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
