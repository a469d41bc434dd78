"""Hosts, seeds and loops whose steps the benchmarks of growth time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import msgspec
import torch
from torch import Tensor, nn

from esper.blueprints.ir import Blueprint, LowRank, Size
from esper.blueprints.library import LIBRARY
from esper.log.event_log import EventLog
from esper.log.memory import MemoryStore
from esper.tamiyo.interface import Advance, Controller, Germinate, Observation, Proposal
from esper.tolaria.growth import Growth
from esper.tolaria.models import mlp
from esper.tolaria.settings import GrowthSettings
from esper.tolaria.training import Batch, classification_loss
from esper_events.keys import SigningKey
from esper_events.stages import Stage

BATCH, RANK, SLOT = 128, 8, "layer2"
BLOCK = 32
"""Steps of a block: whole cycles of shadow passes, and one observation of the held-out batches."""
ORDER = list(Stage)
LENIENT = GrowthSettings(
    observe_every=BLOCK,
    measure_every=BLOCK,
    warmup=0,
    lead=1,
    blend_steps=4,
    stabilize_steps=1,
    evaluate_steps=1_000_000,
    shadow_confidence=0.5,
    stability_band=1e9,
    explosion=1e9,
    max_added_parameters=1 << 40,
)
Step = Callable[[Batch], None]
Make = Callable[[int], AbstractContextManager[Step]]


def low_rank(width: int) -> Blueprint:
    """A linear correction of rank 8."""
    node = LowRank(0, rank=Size("out", 1, width // RANK), size=Size("out"), init="zero")
    return Blueprint(name="rank_8", source="output", nodes=(node,))


def host(width: int) -> nn.Module:
    torch.manual_seed(0)
    return mlp(width, (width, width), 10)


def batches(width: int, count: int = 12) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(BATCH, width, generator=generator),
            torch.randint(10, (BATCH,), generator=generator),
        )
        for _ in range(count)
    ]


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, growth: Growth | None = None) -> Step:
    """A training step as users write it, with the safe point where there is growth."""
    loss_fn = classification_loss(model)

    def step(batch: Batch) -> None:
        loss: Tensor = loss_fn(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if growth is not None:
            growth.step(batch, loss)

    return step


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-4)


def plain(width: int) -> AbstractContextManager[Step]:
    """No growth at all."""
    model = host(width)
    return nullcontext(loop(model, adam(model)))


@dataclass
class Script:
    """Germinates ``count`` seeds at once and takes each to ``last``."""

    count: int
    last: Stage
    made: int = field(default=0)

    def decide(self, observation: Observation) -> list[Proposal]:
        """Proposals as told above."""
        proposals: list[Proposal] = [
            Advance(seed.id, "as told")
            for seed in observation.seeds
            if seed.ready and not seed.pending and ORDER.index(seed.stage) < ORDER.index(self.last)
        ]
        if not self.made:
            self.made = self.count
            proposals += [Germinate(SLOT, "rank_8", "as told")] * self.count
        return proposals


class Growing:
    """A loop with growth whose seeds have come to the stage that is to be measured."""

    def __init__(
        self, width: int, controller: Controller, *, shadow_every: int = 4, share: int = 16
    ) -> None:
        model, self.data = host(width), batches(width)
        optimizer = adam(model)
        settings = msgspec.structs.replace(LENIENT, shadow_every=shadow_every, share=share)
        self.growth = Growth(
            model,
            optimizer,
            classification_loss(model),
            self.data[:4],
            confirm=self.data[4:6],
            settings=settings,
            controller=controller,
            library=[low_rank(width), *LIBRARY.values()],
            log=EventLog(MemoryStore(), SigningKey.generate(), "bench"),
        )
        self.plain_step = loop(model, optimizer)
        self.step = loop(model, optimizer, self.growth)
        self.taken = 0

    def run(self, steps: int, step: Step | None = None) -> None:
        for _ in range(steps):
            (step or self.step)(self.data[self.taken % len(self.data)])
            self.taken += 1

    def until(self, stage: Stage, count: int = 1) -> Growing:
        """Train until all seeds stand in ``stage``, and to the end of a block."""
        while [row.stage for row in self.growth.seed_rows()] != [stage] * count:
            self.run(1)
            if self.taken > 100 * BLOCK:
                stages = [row.stage.value for row in self.growth.seed_rows()]
                raise RuntimeError(f"the seeds came to {stages}, wanted {stage.value}")
        self.run(-self.taken % BLOCK)
        return self


@contextmanager
def growing(width: int, last: Stage, *, count: int = 1, shadow_every: int = 4) -> Iterator[Step]:
    """``count`` seeds in the stage ``last``."""
    found = Growing(width, Script(count, last), shadow_every=shadow_every)
    try:
        yield found.until(last, count).step
    finally:
        found.growth.close()


def timed(
    step: Step, data: Sequence[Batch], clock: Callable[[], float] = time.perf_counter
) -> Callable[[], float]:
    """A call that trains for a block and returns the seconds of one step."""

    def block() -> float:
        begun = clock()
        for index in range(BLOCK):
            step(data[index % len(data)])
        return (clock() - begun) / BLOCK

    return block
