"""What a seed learns in the same trial from each objective: the table of ``benchmarks/README.md``.

A host trains, and beside it seeds of one blueprint in one slot, equal to the bit when they
germinate and each with an objective of its own; none touches the host, so all see the same one.
Measured on the test part, as the fall of the loss against the host without the seed at the same
step: with the seed switched on after equal steps of the trial; after as many steps as each
objective makes in the time that those steps of the shadow objective take; and when the seed of
equal steps has been grafted and trained with the host, against the host trained alone as long. A
seed that is grafted without any trial stands beside them. Means over seeds with Student's 95 %
intervals; what was measured is kept as JSON in ``benchmarks/results``.

Usage: ``python -m benchmarks.objectives --seeds 8``.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from benchmarks.table import RESULTS, interval
from esper.blueprints.library import LIBRARY
from esper.kasmina._lattice import AlphaSchedule
from esper.kasmina.host_optimizer import seed_optimizer
from esper.kasmina.isolation import seed_everything
from esper.kasmina.joint_optimizer import JointOptimizer
from esper.kasmina.lattice import Lattice
from esper.kasmina.objectives import local_step
from esper.kasmina.onward import find_onward
from esper.kasmina.seed import Seed, evaluating, switched_on
from esper.kasmina.shadow import shadow_step
from esper.kasmina.shared import shared_step
from esper.kasmina.slots import find_slots
from esper.tolaria.config import Config, parse
from esper.tolaria.data import Splits, load
from esper.tolaria.models import create
from esper.tolaria.training import (
    Batch,
    Score,
    classification_loss,
    endless_batches,
    evaluate,
    make_optimizer,
)
from esper.tolaria.trials import new_seed
from esper_events.events import Objective
from esper_events.stages import Stage

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
UNTRAINED = "none: grafted as it began"
TRIAL, BLEND, TOGETHER = 300, 100, 500
"""Steps of the trial, of the blend, and from the graft to the last measurement."""
CROWD = 16
"""Seeds that share a pass where the cost of many is measured."""


@dataclass(frozen=True)
class Place:
    """Where a seed of which blueprint is tried in which host, after how many steps of it."""

    data: str
    model: str
    slot: str
    blueprint: str
    warmup: int = 300

    @property
    def config(self) -> Config:
        """The host and its data."""
        text = f'[run]\nsteps = 1\n[data]\nname = "{self.data}"\n[model]\n{self.model}\n'
        return parse(text + "[optimizer]\nlr = 3e-3\n", Path())

    def __str__(self) -> str:
        return f"{self.data}, {self.blueprint} in {self.slot}"


PLACES = (
    Place("digits", "hidden = [6, 6]", "layer1..layer2", "widen"),
    Place("digits", "hidden = [6, 6]", "layer1", "bottleneck_mlp"),
    Place("mnist1d", "hidden = [32, 32]", "layer1..layer1", "conv1d_stack"),
    Place("mnist1d", "hidden = [32, 32]", "layer1", "gated_mlp"),
)


@dataclass
class Found:
    """Of one seed of one objective: fall of the test loss as a fraction, and points of accuracy
    gained, each against the host without it."""

    equal_steps: tuple[float, float] | None = None
    equal_time: tuple[float, float] | None = None
    grafted: tuple[float, float] | None = None


@dataclass
class Costs:
    """The host's plain step in ms, and in plain steps one step of a seed of each objective, and of
    ``CROWD`` equal seeds in one pass."""

    plain_ms: float
    steps: dict[Objective, float]
    crowd: dict[Objective, float]

    def in_equal_time(self, objective: Objective) -> int:
        """Steps that it makes in the time of a whole shadow trial."""
        return round(TRIAL * self.steps["shadow"] / self.steps[objective])


class Host:
    """A host in training, and the seeds beside it."""

    def __init__(self, place: Place, splits: Splits, number: int) -> None:
        config = place.config
        seed_everything(number)
        self.splits = splits
        self.model = create(config, splits)
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.loss_fn = classification_loss(self.model)
        self.batches = partial(endless_batches, splits.train, config.run.batch_size, number)
        self.steps = 0
        self.train(place.warmup)
        self.seeds = {objective: self.seed(place, number, objective) for objective in OBJECTIVES}
        self._joint = {objective: JointOptimizer([seed]) for objective, seed in self.seeds.items()}

    def seed(self, place: Place, number: int, objective: Objective, seed: int = 0) -> Seed:
        """A new seed, whose optimizer is of the host's kind."""
        batch = next(self.batches())
        slots = find_slots(self.model, lambda: self.loss_fn(batch)).slots
        slot = slots[place.slot]
        made = new_seed(seed, slot, LIBRARY[place.blueprint], number, objective)
        at_end = list(self.model.get_submodule(slot.end).parameters())
        made.optimizer = seed_optimizer(self.optimizer, made.trainable, at_end, 1.0)
        if objective == "next_layer":
            made.onward = find_onward(self.model, slot, slots, lambda: self.loss_fn(batch))
        return made

    def step(self, batch: Batch) -> None:
        """One plain step of the host."""
        loss: Tensor = self.loss_fn(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()

    def learn(self, objective: Objective, batch: Batch) -> None:
        """One step of the seed of ``objective``."""
        seed = self.seeds[objective]
        if objective == "shadow":
            shadow_step(self.model, seed, self.loss_fn, batch, self.steps)
            return
        joint = self._joint[objective]
        (loss,) = local_step(self.model, [seed], self.loss_fn, batch, self.steps, joint)
        if isinstance(loss, Exception):
            raise loss

    def train(self, steps: int, after: Callable[[Batch], None] = lambda _: None) -> None:
        """Plain steps on the batches that come next; ``after`` is called after each."""
        self.model.train()
        for batch in islice(self.batches(start=self.steps), steps):
            self.step(batch)
            self.steps += 1
            after(batch)

    def score(self, seed: Seed | None = None) -> Score:
        """On the test part, with ``seed`` switched on where one is given."""
        if seed is None:
            return evaluate(self.model, self.splits.test)
        with switched_on(self.model, seed), evaluating(seed.body):
            return evaluate(self.model, self.splits.test)

    def grafted(self, seed: Seed | None) -> Score:
        """After ``TOGETHER`` steps more of a copy of the host into which ``seed`` is grafted."""
        twin = copy.copy(self)
        twin.model, twin.optimizer, own = copy.deepcopy((self.model, self.optimizer, seed))
        twin.loss_fn = classification_loss(twin.model)
        if own is None:
            twin.train(TOGETHER)
            return twin.score()
        first = next(self.batches())
        lattice = Lattice(twin.model, twin.optimizer, lambda: twin.loss_fn(first))
        lattice.germinate(own)
        lattice.advance(own, Stage.TRAINING)
        lattice.start_graft(own, AlphaSchedule(BLEND))
        twin.train(TOGETHER, lambda _: lattice.tick())
        return twin.score()


def gained(score: Score, base: Score) -> tuple[float, float]:
    """Fall of the loss as a fraction, and points of accuracy."""
    return round(1.0 - score.loss / base.loss, 5), round(score.accuracy - base.accuracy, 3)


def costs(place: Place, splits: Splits, rounds: int = 20, block: int = 10) -> Costs:
    """Medians over blocks of steps in turns, in the processor time of one thread."""
    torch.set_num_threads(1)
    host = Host(place, splits, 0)
    batches = list(islice(host.batches(), block))
    calls: dict[str, Callable[[Batch], object]] = {"plain": host.step}
    for objective in OBJECTIVES:
        calls[objective] = partial(host.learn, objective)
        calls[f"crowd {objective}"] = _crowd(host, place, objective)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.thread_time()
            for batch in batches:
                call(batch)
            times[name].append((time.thread_time() - start) / block)

    def ratio(name: str) -> float:
        both = zip(times[name], times["plain"], strict=True)
        return statistics.median(own / plain for own, plain in both)

    return Costs(
        1000.0 * statistics.median(times["plain"]),
        {objective: ratio(objective) for objective in OBJECTIVES},
        {objective: ratio(f"crowd {objective}") for objective in OBJECTIVES},
    )


def _crowd(host: Host, place: Place, objective: Objective) -> Callable[[Batch], object]:
    """One step of ``CROWD`` seeds in one pass."""
    seeds = [host.seed(place, 0, objective, number) for number in range(CROWD)]
    together = shared_step if objective == "shadow" else local_step
    joint = JointOptimizer(seeds)
    return lambda batch: together(host.model, seeds, host.loss_fn, batch, 0, joint)


def compare(place: Place, cost: Costs, number: int) -> dict[str, Found]:
    """Seed ``number`` of the comparison in one place."""
    torch.set_num_threads(1)
    host = Host(place, load(place.config.data), number)
    found = {name: Found() for name in (*OBJECTIVES, UNTRAINED)}
    untrained = copy.deepcopy(host.seeds["shadow"])
    lengths = {objective: cost.in_equal_time(objective) for objective in OBJECTIVES}
    for step in range(1, max(TRIAL, *lengths.values()) + 1):
        host.train(1, lambda batch: _learn(host, batch))
        at_end = [objective for objective, length in lengths.items() if length == step]
        if step != TRIAL and not at_end:
            continue
        base = host.score()
        for objective in at_end:
            found[objective].equal_time = gained(host.score(host.seeds[objective]), base)
        if step == TRIAL:
            for objective, seed in host.seeds.items():
                found[objective].equal_steps = gained(host.score(seed), base)
            _graft(host, found, untrained)
    return found


def _learn(host: Host, batch: Batch) -> None:
    for objective in OBJECTIVES:
        host.learn(objective, batch)


def _graft(host: Host, found: dict[str, Found], untrained: Seed) -> None:
    alone = host.grafted(None)
    found[UNTRAINED].equal_steps = (0.0, 0.0)
    found[UNTRAINED].grafted = gained(host.grafted(untrained), alone)
    for objective, seed in host.seeds.items():
        found[objective].grafted = gained(host.grafted(seed), alone)


def table(place: Place, cost: Costs, rows: Sequence[dict[str, Found]]) -> Iterator[str]:
    """The lines of the table of one place, in Markdown."""
    yield f"{place} ({len(rows)} seeds, a plain step {cost.plain_ms:.2f} ms)"
    yield ""
    yield (
        f"| objective | step / plain | of {CROWD} | on, equal steps | on, equal time | grafted "
        "| accuracy |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for name in (*OBJECTIVES, UNTRAINED):
        found = [row[name] for row in rows]
        cells = [
            *_ratios(cost, name),
            _told([f.equal_steps[0] for f in found if f.equal_steps], "%"),
            _told([f.equal_time[0] for f in found if f.equal_time], "%"),
            _told([f.grafted[0] for f in found if f.grafted], "%"),
            _told([f.grafted[1] for f in found if f.grafted]),
        ]
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""
    yield f"grafted, minus shadow, paired by seed: {'; '.join(_against_shadow(rows))}"
    yield ""


def _against_shadow(rows: Sequence[dict[str, Found]]) -> Iterator[str]:
    for name in (*OBJECTIVES[1:], UNTRAINED):
        pairs = [(row[name].grafted, row["shadow"].grafted) for row in rows]
        yield f"{name} {_told([own[0] - other[0] for own, other in pairs if own and other], '%')}"


def _ratios(cost: Costs, name: str) -> list[str]:
    return [
        next((f"{ratio:.1f}" for objective, ratio in known.items() if objective == name), "")
        for known in (cost.steps, cost.crowd)
    ]


def _told(values: Sequence[float], unit: str = "") -> str:
    if not values:
        return ""
    scale = 100.0 if unit else 1.0
    mean, half = interval([scale * value for value in values])
    return f"{mean:+.1f} ± {half:.1f}{' %' if unit else ''}"


def main() -> None:
    """Print the tables, and keep what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8, help="how many for each place")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", default="", help="places whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-json", action="store_true", help="print only")
    chosen = parser.parse_args()
    numbers = range(chosen.first, chosen.first + chosen.seeds)
    kept = []
    with ProcessPoolExecutor(chosen.jobs, mp_context=get_context("spawn")) as pool:
        for place in PLACES:
            if chosen.only not in str(place):
                continue
            cost = costs(place, load(place.config.data))
            rows = list(pool.map(partial(compare, place, cost), numbers))
            print("\n".join(table(place, cost, rows)), flush=True)
            found = [{name: asdict(f) for name, f in row.items()} for row in rows]
            kept.append({"place": asdict(place), "cost": asdict(cost), "seeds": found})
    if not chosen.no_json:
        path = RESULTS / "objectives.json"
        path.write_text(json.dumps(kept, indent=1) + "\n")
        print(f"kept in {path}")


if __name__ == "__main__":
    main()
