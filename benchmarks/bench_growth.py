"""What growth costs a training loop at each stage of a seed, against the plain loop.

``python -m benchmarks.bench_growth`` prints the table of ratios; as a test file it gives the times
of single steps. The host is an MLP of two hidden layers of width h, batch 128, Adam; the seed a
low-rank correction of rank 8 on the second layer. Blocks of steps of two loops are timed in turns
on copies of one host; a ratio is the median over pairs of blocks with its 95 % bootstrap interval.
A/A, two plain loops, shows what this machine calls equal. The peer is what a user would write in
plain torch: the same seed, blended in from a detached input, without any shadow pass.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.growing import (
    BLOCK,
    RANK,
    SLOT,
    Growing,
    Make,
    Script,
    Step,
    adam,
    batches,
    growing,
    host,
    loop,
    low_rank,
    plain,
    timed,
)
from benchmarks.paired import Ratio, in_turns
from esper.kasmina._lattice import AlphaSchedule
from esper.kasmina.lattice import Lattice
from esper.tolaria.trials import give_optimizer, new_seed
from esper_events.stages import Stage


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


def training(width: int) -> AbstractContextManager[Step]:
    """One seed in TRAINING, a shadow pass at every fourth step."""
    return growing(width, Stage.TRAINING)


def forked(width: int) -> AbstractContextManager[Step]:
    """One seed grafted, and the fork."""
    return growing(width, Stage.EVALUATING)


def one_candidate(width: int) -> AbstractContextManager[Step]:
    """A seed that learns from a shadow pass at every step."""
    return growing(width, Stage.TRAINING, shadow_every=1)


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


def stages_of_growth(pairs: int) -> Table:
    """What each stage costs."""
    table = Table(title=f"torch {torch.__version__}, one thread, {pairs} pairs of {BLOCK} steps")
    for column in ("one seed of rank 8", "h", "plain step", "/ plain", "A/A", "peer", "goal"):
        table.add_column(column, justify="left" if column == "one seed of rank 8" else "right")
    for case in CASES:
        for place, width in enumerate(case.widths):
            few = max(4, pairs // 4) if width > 256 else pairs
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


def main() -> None:
    """Print the table; figures are multiples of one plain training step unless they say else."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pairs", type=int, default=20, help="pairs of blocks a row")
    torch.set_num_threads(1)
    Console(width=150).print(stages_of_growth(parser.parse_args().pairs))


if __name__ == "__main__":
    main()
