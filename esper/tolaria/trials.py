"""Seeds under way: what the engine knows of each beyond its place in the lattice."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from esper.blueprints.build import applies, build, parameter_count
from esper.blueprints.ir import Blueprint
from esper.kasmina.host_optimizer import seed_optimizer
from esper.kasmina.lattice import Lattice
from esper.kasmina.seed import Seed
from esper.kasmina.signature import Slot
from esper.tamiyo.interface import Candidate
from esper.tolaria.statistics import paired_gain
from esper_events.events import Objective, TrialMeasured
from esper_events.stages import Stage


@dataclass(eq=False)
class Trial:
    """One seed, from the proposal to its end.

    ``refused_at`` is the number of measurements there were when a gate last refused it: a gate
    is not asked again before there is a new one. ``entering`` tells that its contract is being
    checked, before it may train. ``broken`` says why it has to end; a trial that is ``stopped``
    learns no more, while one that broke as it was measured learns on until its end, so that the
    passes of training are the same in a re-run, which measures nothing.
    """

    seed: Seed
    blueprint: Blueprint
    since: int
    gains: list[float] = field(default_factory=list)
    refusals: int = 0
    refused_at: int = 0
    entering: bool = False
    broken: str = ""
    stopped: bool = False

    def stop(self, reason: str) -> None:
        """End it because it cannot learn."""
        self.broken, self.stopped = reason, True


def derived_seed(*parts: object) -> int:
    """A 63-bit random seed that depends on ``parts`` alone (SHA-256 of their text)."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def new_seed(
    number: int, slot: Slot, blueprint: Blueprint, run_seed: int, objective: Objective = "shadow"
) -> Seed:
    """Build seed ``number``; its tensors depend on the run's seed and its number alone."""
    generator = torch.Generator().manual_seed(derived_seed(run_seed, "seed", number))
    body = build(blueprint, slot, generator)
    recipe = blueprint.canonical()
    return Seed(number, slot, blueprint.id, body, recipe=recipe, objective=objective)


def give_optimizer(lattice: Lattice, seed: Seed, lr_scale: float) -> None:
    """Let ``seed`` learn with an optimizer of the host's kind."""
    host = list(lattice.model.get_submodule(seed.slot.end).parameters())
    seed.optimizer = seed_optimizer(lattice.optimizer, seed.trainable, host, lr_scale)


def measured(
    trial: Trial, baseline: Sequence[float], losses: Sequence[float], step: int
) -> TrialMeasured:
    """Enter the seed's held-out gain over ``baseline``, the host's losses on the same batches."""
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
