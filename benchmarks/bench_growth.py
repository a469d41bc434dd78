"""What growth costs a training loop at each stage of a seed, against the plain loop.

``python -m benchmarks.bench_growth`` prints the table of ratios; as a test file it gives the times
of single steps. The host is an MLP of two hidden layers of width h, batch 128, Adam; the seed a
low-rank correction of rank 8 on the second layer. Blocks of steps of two loops are timed in turns
on copies of one host; a ratio is the median over pairs of blocks with its 95 % bootstrap interval.
A/A, two plain loops, shows what this machine calls equal. The peer is what a user would write in
plain torch: the same seed, blended in from a detached input, without any shadow pass. A second
table compares tournaments whose seeds share a pass with the same ones in passes of their own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import product

import msgspec
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.paired import Ratio, in_turns
from esper.blueprints.ir import Blueprint, LowRank, Size
from esper.blueprints.library import LIBRARY
from esper.kasmina._lattice import AlphaSchedule
from esper.kasmina.lattice import Lattice
from esper.log.event_log import EventLog
from esper.log.memory import MemoryStore
from esper.tamiyo.interface import Advance, Controller, Germinate, Observation, Proposal
from esper.tamiyo.rules import RuleController, Rules
from esper.tolaria.growth import Growth
from esper.tolaria.models import mlp
from esper.tolaria.settings import GrowthSettings
from esper.tolaria.training import Batch, classification_loss
from esper.tolaria.trials import give_optimizer, new_seed
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


class Blend(nn.Module):
    """The peer: a module with a low-rank seed that sends no gradient into it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.out_features, RANK, bias=False)
        self.up = nn.Linear(RANK, base.out_features, bias=False)
        self.alpha = nn.Buffer(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.base(x)
        delta: Tensor = self.up(self.down(h.detach()))
        return h + self.alpha * delta


def peer(width: int) -> AbstractContextManager[Step]:
    """The seed as a user would write it, trained with its host."""
    model = host(width)
    model.set_submodule(SLOT, Blend(model.get_submodule(SLOT)))  # type: ignore[arg-type]
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


def training(width: int) -> AbstractContextManager[Step]:
    """One seed in TRAINING, a shadow pass at every fourth step."""
    return growing(width, Stage.TRAINING)


def forked(width: int) -> AbstractContextManager[Step]:
    """One seed grafted, and the fork."""
    return growing(width, Stage.EVALUATING)


def one_candidate(width: int) -> AbstractContextManager[Step]:
    """A seed that learns from a shadow pass at every step."""
    return growing(width, Stage.TRAINING, shadow_every=1)


def tournament(width: int) -> AbstractContextManager[Step]:
    """Sixteen of them."""
    return growing(width, Stage.TRAINING, count=16, shadow_every=1)


@contextmanager
def held(width: int, share: int, count: int, spread: bool) -> Iterator[Step]:
    """A tournament of ``count`` seeds in one slot and of one blueprint, or spread over slots and
    blueprints by the rule-based controller; ``share`` of them in a pass."""
    controller: Controller = Script(count, Stage.TRAINING)
    if spread:
        controller = RuleController(Rules(0, 1, 1.0, 1, count, trial_steps=10**9, rungs=0))
    found = Growing(width, controller, shadow_every=1, share=share)
    try:
        yield found.until(Stage.TRAINING, count).step
    finally:
        found.growth.close()


def grafted(width: int) -> AbstractContextManager[Step]:
    """One seed grafted, without the fork that growth trains beside it."""
    model, data = host(width), batches(width)
    optimizer = adam(model)
    lattice = Lattice(model, optimizer, lambda: model(data[0][0]))
    seed = new_seed(0, lattice.map.slots[SLOT], low_rank(width), 0)
    lattice.germinate(seed)
    give_optimizer(lattice, seed, 1.0)
    lattice.advance(seed, Stage.TRAINING)
    lattice.start_graft(seed, AlphaSchedule(1000)).alpha.fill_(0.5)
    return nullcontext(loop(model, optimizer))


def pauses(width: int, seeds: int, runs: int = 6) -> list[float]:
    """For each of ``runs``, the longest safe point from the proposal of ``seeds`` at once until all
    of them train, in plain steps (the run's median), both in the processor time of the thread."""
    longest = []
    for _ in range(runs):
        found = Growing(width, Script(seeds, Stage.TRAINING), shadow_every=1_000_000)
        found.run(BLOCK)
        steps, points = [], []
        while [row.stage for row in found.growth.seed_rows()] != [Stage.TRAINING] * seeds:
            batch = found.data[found.taken % len(found.data)]
            begun = time.thread_time()
            found.plain_step(batch)
            between = time.thread_time()
            found.growth.step(batch)
            found.taken += 1
            steps.append(between - begun)
            if found.taken % BLOCK:  # An observation is no part of it.
                points.append(time.thread_time() - between)
        found.growth.close()
        longest.append(max(points) / statistics.median(steps))
    return longest


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


def ratio(make: Make, width: int, pairs: int) -> tuple[Ratio, float]:
    """The step of ``make`` over the plain one, and the plain one's seconds."""
    data = batches(width)
    with make(width) as own_step, plain(width) as plain_step:
        own, other = timed(own_step, data), timed(plain_step, data)
        own(), other()
        measured = in_turns(own, other, pairs)
    return Ratio.of([a / b for a, b in measured]), statistics.median(b for _, b in measured)


@dataclass(frozen=True)
class Case:
    """One row: what is compared with plain training, and what it should reach."""

    name: str
    make: Make
    widths: tuple[int, ...]
    goals: tuple[str, ...] = ()
    with_peer: bool = False


CASES = (
    Case(
        "in TRAINING, shadow pass every 4 steps",
        training,
        (16, 64, 256, 1024),
        ("", "", "", "1.25"),
        True,
    ),
    Case("grafted, without the fork", grafted, (64, 1024), ("1.25", "1.10"), True),
    Case("grafted, with the fork", forked, (64, 1024)),
    Case("one candidate, shadow pass every step", one_candidate, (64, 256)),
    Case("tournament of 16 candidates", tournament, (64, 256)),
)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
@pytest.mark.parametrize("side", ["growing", "plain"])
def test_block(benchmark: BenchmarkFixture, case: Case, side: str) -> None:
    torch.set_num_threads(1)
    benchmark.group = case.name
    with (case.make if side == "growing" else plain)(64) as step:
        block = timed(step, batches(64))
        benchmark.pedantic(block, rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]


def apart(width: int, count: int, spread: bool, pairs: int) -> tuple[str, ...]:
    """A tournament's step over the plain one, and in passes of its own over the shared ones: the
    whole step, and what the seeds add to that of the host. In processor time of the thread."""
    data = batches(width)
    with (
        plain(width) as host_alone,
        held(width, 16, count, spread) as together,
        held(width, 1, count, spread) as separate,
    ):
        steps = (host_alone, together, separate)
        blocks = [timed(step, data, time.thread_time) for step in steps]
        for block in blocks:
            block()
        turns = [[block() for block in blocks] for _ in range(pairs)]
    whole = Ratio.of([c / b for _, b, c in turns])
    added = Ratio.of([(c - a) / (b - a) for a, b, c in turns])
    plain_step = statistics.median(a for a, *_ in turns)
    shared, own = (Ratio.of([turn[place] / turn[0] for turn in turns]) for place in (1, 2))
    return f"{plain_step * 1e6:,.0f} us", str(shared), str(own), str(whole), str(added)


def tournaments(pairs: int) -> Table:
    """What sharing a pass is worth."""
    table = Table(title="Tournaments, a shadow pass at every step")
    table.add_column("seeds")
    for column in ("h", "plain step", "shared / plain", "apart / plain", "apart / shared", "added"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, count, spread in (
        ("16 of rank 8 in one slot", 16, False),
        ("16, spread", 16, True),
        ("8, spread", 8, True),
    ):
        for width in (64, 256):
            table.add_row(name, str(width), *apart(width, count, spread, pairs))
    return table


def main() -> None:
    """Print the tables; figures are multiples of one plain training step unless they say else."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pairs", type=int, default=20, help="pairs of blocks a row")
    parser.add_argument("--tournaments", action="store_true", help="print the second table alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.tournaments:
        Console(width=150).print(stages_of_growth(arguments.pairs))
    Console(width=150).print(tournaments(max(4, arguments.pairs // 4)))


def stages_of_growth(pairs: int) -> Table:
    """What each stage costs."""
    table = Table(title=f"torch {torch.__version__}, one thread, {pairs} pairs of {BLOCK} steps")
    for column in ("one seed of rank 8", "h", "plain step", "/ plain", "A/A", "peer", "goal"):
        table.add_column(column, justify="left" if column == "one seed of rank 8" else "right")
    for case in CASES:
        for place, width in enumerate(case.widths):
            few = max(4, pairs // 4) if width > 256 or case.make is tournament else pairs
            own, seconds = ratio(case.make, width, few)
            control, _ = ratio(plain, width, few)
            rival = str(ratio(peer, width, few)[0]) if case.with_peer else ""
            goal = case.goals[place] if case.goals else ""
            cells = (f"{seconds * 1e6:,.0f} us", str(own), str(control), rival, goal)
            table.add_row(case.name, str(width), *cells)
    for width, seeds in product((64, 1024), (1, 8)):
        pause = str(Ratio.of(pauses(width, seeds)))
        name = f"the longest pause as {seeds} germinate"
        table.add_row(name, str(width), "", pause, "", "", "1")
    return table


if __name__ == "__main__":
    main()
