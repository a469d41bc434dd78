"""A small host that a seed can help, and controllers that do as they are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.kasmina.isolation import seed_everything
from esper.log.event_log import EventLog
from esper.log.memory import MemoryStore
from esper.log.store import Store
from esper.tamiyo.interface import Advance, Controller, Cull, Germinate, Observation, Proposal
from esper.tolaria.growth import Growth
from esper.tolaria.models import mlp
from esper.tolaria.settings import GrowthSettings
from esper_events.events import (
    Event,
    Objective,
    Record,
    TransitionApplied,
    TransitionDecided,
)
from esper_events.keys import SigningKey
from esper_events.stages import Stage

torch.set_num_threads(1)

FAST = GrowthSettings(
    observe_every=5,
    measure_every=5,
    warmup=0,
    lead=2,
    sync_decisions=True,
    blend_steps=6,
    stabilize_steps=5,
    evaluate_steps=20,
    embargo=12,
    min_effect=0.0,
    error_budget=1.0,
    shadow_confidence=0.5,
    stability_band=1e9,
)
"""Every stage is over after a few steps, and the gates want next to nothing."""

Batch = tuple[Tensor, Tensor]


def with_(settings: GrowthSettings = FAST, **changes: Any) -> GrowthSettings:
    """``settings`` with some of them changed."""
    return msgspec.structs.replace(settings, **changes)


@dataclass
class OneSeed:
    """Germinates one seed when ``start`` has come, then asks gate after gate.

    ``cull_in`` ends it in that stage instead. With ``again`` it germinates whenever nothing is
    on trial.
    """

    slot: str
    blueprint: str
    cull_in: Stage | None = None
    start: int = 5
    again: bool = False
    seen: list[Observation] = field(default_factory=list)
    done: bool = False
    objective: Objective = "shadow"

    def state(self) -> bool:
        """Whether it has had its seed."""
        return self.done

    def restore(self, state: bool) -> None:
        """Go on from there."""
        self.done = state

    def decide(self, observation: Observation) -> list[Proposal]:
        """Proposals as told above."""
        self.seen.append(observation)
        if observation.step >= self.start and not observation.seeds:
            if self.done and not self.again:
                return []
            self.done = True
            return [Germinate(self.slot, self.blueprint, "as told", self.objective)]
        free = [seed for seed in observation.seeds if not seed.pending]
        return [
            Cull(seed.id, "as told") if seed.stage is self.cull_in else Advance(seed.id, "as told")
            for seed in free
            if seed.ready or seed.stage is self.cull_in
        ]


class Asleep:
    """A controller that never wants anything."""

    def state(self) -> None:
        """Nothing to remember."""

    def restore(self, state: None) -> None:
        """Nothing to take."""

    def decide(self, observation: Observation) -> list[Proposal]:
        """Wait."""
        return []


class Loop:
    """A training loop over synthetic batches: the host is too narrow for its teacher."""

    def __init__(self, *, dropout: float = 0.0, batchnorm: bool = False, seed: int = 0) -> None:
        seed_everything(seed)
        teacher = mlp(6, (24,), 3, activation="tanh")
        self.model: nn.Module = mlp(6, (2,), 3, dropout=dropout, batchnorm=batchnorm)
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(seed)
        self.batches = [_labelled(teacher, generator) for _ in range(40)]
        self.probe = [_labelled(teacher, generator) for _ in range(12)]
        self.confirm = [_labelled(teacher, generator) for _ in range(6)]
        self.evaluations = 0
        self.steps = 0
        self.growth: Growth | None = None

    def loss_fn(self, batch: Batch) -> Tensor:
        """Mean squared error."""
        self.evaluations += 1
        x, y = batch
        return functional.mse_loss(self.model(x), y)

    def run(
        self,
        steps: int,
        told_loss: Callable[[int, Tensor], Tensor | float | None] = lambda _, loss: loss,
    ) -> None:
        """Train; ``told_loss`` is what growth is told of a step's loss."""
        self.model.train()
        for _ in range(steps):
            batch = self.batches[self.steps % len(self.batches)]
            self.steps += 1
            loss = self.loss_fn(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.growth is not None:
                self.growth.step(batch, told_loss(self.steps, loss.detach()))

    def grow(
        self,
        settings: GrowthSettings,
        controller: Controller,
        store: Store | None = None,
        **more: Any,
    ) -> Growth:
        """Let this host grow from now on."""
        if "log" not in more:
            more["log"] = EventLog(store or MemoryStore(), SigningKey.generate(), "test")
        more = {"probe": self.probe, "confirm": self.confirm} | more
        self.growth = Growth(
            self.model,
            self.optimizer,
            self.loss_fn,
            settings=settings,
            controller=controller,
            **more,
        )
        return self.growth


def _labelled(teacher: nn.Module, generator: torch.Generator) -> Batch:
    x = torch.randn(16, 6, generator=generator)
    with torch.no_grad():
        return x, 3.0 * teacher(x)


def grow(
    settings: GrowthSettings, controller: Controller, steps: int, **host: Any
) -> tuple[Growth, Loop]:
    """A whole run, closed."""
    loop = Loop(**host)
    growth = loop.grow(settings, controller)
    loop.run(steps)
    growth.close()
    return growth, loop


def bits(loop: Loop) -> list[Tensor]:
    """Everything that training a host may change, for a comparison bit by bit."""
    states = [
        value
        for entries in loop.optimizer.state.values()
        for value in entries.values()
        if isinstance(value, Tensor)
    ]
    return [*loop.model.state_dict().values(), *states, torch.default_generator.get_state()]


def same(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    """Whether two such lists hold the same bits."""
    return len(one) == len(two) and all(map(torch.equal, one, two))


def plain(steps: int, **host: Any) -> list[Tensor]:
    """The bits of the same host trained for ``steps`` without any growth."""
    loop = Loop(**host)
    loop.run(steps)
    return bits(loop)


def events(growth: Growth, kind: type[Event]) -> list[Any]:
    """Events of one kind in the log of a run."""
    return [record.event for record in growth.records() if isinstance(record.event, kind)]


def stages(records: Sequence[Record], seed: int = 0) -> list[str]:
    """The stages that ``seed`` entered, in order."""
    made: dict[int, TransitionDecided] = {}
    entered = []
    for record in records:
        if isinstance(record.event, TransitionDecided):
            made[record.event.decision] = record.event
        elif isinstance(record.event, TransitionApplied):
            decided = made[record.event.decision]
            if decided.seed == seed:
                entered.append(decided.target.value)
    return entered
