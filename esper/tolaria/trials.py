"""Seeds under way: what the engine knows of each beyond its place in the lattice."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from esper.blueprints.build import applies, build, parameter_count
from esper.blueprints.ir import Blueprint
from esper.kasmina.host_optimizer import seed_optimizer
from esper.kasmina.lattice import Lattice
from esper.kasmina.seed import Seed
from esper.kasmina.shadow import LossFunction, held_out_losses, shadow_step
from esper.kasmina.signature import Slot
from esper.tamiyo.interface import Candidate
from esper.tolaria.statistics import paired_gain
from esper_events.events import TrialMeasured
from esper_events.stages import Stage

SEED_FAULTS = (RuntimeError, ValueError, IndexError, TypeError)
"""What a seed's body raises on an activation that it cannot take. The trial then ends, and the
host trains on; a fault of the user's own objective shows in the host's pass just as well."""


@dataclass(eq=False)
class Trial:
    """One seed, from the proposal to its end.

    ``refused_at`` is the number of measurements there were when a gate last refused it: a gate
    is not asked again before there is a new one.
    """

    seed: Seed
    blueprint: Blueprint
    since: int
    gains: list[float] = field(default_factory=list)
    refusals: int = 0
    refused_at: int = 0
    broken: str = ""


def derived_seed(*parts: object) -> int:
    """A 63-bit random seed that depends on ``parts`` alone (SHA-256 of their text)."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def new_seed(number: int, slot: Slot, blueprint: Blueprint, run_seed: int) -> Seed:
    """Build seed ``number``; its tensors depend on the run's seed and its number alone."""
    generator = torch.Generator().manual_seed(derived_seed(run_seed, "seed", number))
    body = build(blueprint, slot, generator)
    recipe = blueprint.canonical()
    return Seed(id=number, slot=slot, blueprint=blueprint.id, body=body, recipe=recipe)


def give_optimizer(lattice: Lattice, seed: Seed, lr_scale: float) -> None:
    """Let ``seed`` learn with an optimizer of the host's kind."""
    host = list(lattice.model.get_submodule(seed.slot.end).parameters())
    seed.optimizer = seed_optimizer(lattice.optimizer, seed.trainable, host, lr_scale)


def train_in_shadow(
    lattice: Lattice, trial: Trial, loss_fn: LossFunction, batch: Any, run_seed: int
) -> None:
    """One shadow step; an exception or a loss that is not finite marks the trial as broken."""
    draw = derived_seed(run_seed, "shadow", trial.seed.id, trial.seed.shadow_steps)
    try:
        loss = shadow_step(lattice.model, trial.seed, loss_fn, batch, draw)
    except SEED_FAULTS as error:
        trial.broken = f"its shadow pass failed: {error}"
        return
    if not math.isfinite(loss):
        trial.broken = f"its shadow loss is {loss}"


def measure_trial(
    lattice: Lattice,
    trial: Trial,
    loss_fn: LossFunction,
    batches: Sequence[Any],
    baseline: Sequence[float],
    step: int,
) -> TrialMeasured | None:
    """Measure the seed's held-out gain over ``baseline``, the host's losses on ``batches``; None
    marks the trial as broken."""
    try:
        losses = held_out_losses(lattice.model, loss_fn, batches, trial.seed)
    except SEED_FAULTS as error:
        trial.broken = f"its measurement failed: {error}"
        return None
    gain = paired_gain(baseline, losses)
    trial.gains.append(gain.relative)
    figures = {
        "gain": gain.relative,
        "error": gain.error,
        "shadow_steps": float(trial.seed.shadow_steps),
    }
    return TrialMeasured(time=time.time(), step=step, seed=trial.seed.id, figures=figures)


def candidates(
    lattice: Lattice, library: Sequence[Blueprint], budget_left: int
) -> tuple[Candidate, ...]:
    """Every blueprint that fits a free slot within the budget, in order of slot and library."""
    found = []
    for slot in lattice.map.slots.values():
        if lattice.occupied(slot.id):
            continue
        for blueprint in library:
            if blueprint.source != slot.source or applies(blueprint, slot) is not None:
                continue
            count = parameter_count(blueprint, slot)
            if count <= budget_left:
                found.append(Candidate(slot.id, blueprint.name, count))
    return tuple(found)


def live_stage(lattice: Lattice, trial: Trial) -> Stage:
    """The seed's stage; DORMANT until its germination has been applied."""
    if trial.seed.id not in lattice.seeds:
        return Stage.DORMANT
    return lattice.stage(trial.seed.id)
