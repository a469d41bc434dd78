"""What a tournament costs a training loop: seeds that share a pass of their host, and their bodies.

``python -m benchmarks.bench_tournaments`` prints two tables, in processor time of the thread and in
turns of blocks of 32 steps, with a shadow pass at every step. In the first, the step of a loop
whose seeds share passes, and whose equal seeds are computed in one call, stands against the same
with a call for each body, against a pass for each seed and against the plain loop. The second asks
what is left to gain by computing the bodies of several slots in one call: its peer are passes in
which bodies, and most of their optimizers' steps, cost nothing at all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.growing import (
    BLOCK,
    Growing,
    Script,
    Step,
    adam,
    batches,
    low_rank,
    plain,
    timed,
)
from benchmarks.paired import Ratio
from esper.kasmina import bodies
from esper.kasmina.capture import Captured
from esper.kasmina.joint_optimizer import JointOptimizer
from esper.kasmina.lattice import Lattice
from esper.kasmina.seed import Seed
from esper.kasmina.shared import shared_step
from esper.tamiyo.interface import Controller
from esper.tamiyo.rules import RuleController, Rules
from esper.tolaria.models import mlp
from esper.tolaria.training import classification_loss
from esper.tolaria.trials import give_optimizer, new_seed
from esper_events.stages import Stage

ALONE = patch.object(bodies, "MANY", 1 << 30)
"""While it is on, every body is called for itself."""
TOURNAMENTS = (
    ("16 of rank 8 in one slot", 16, False, (64, 256, 1024)),
    ("6 of rank 8 in one slot", 6, False, (64, 256)),
    ("16, spread", 16, True, (64, 256)),
    ("8, spread", 8, True, (64, 256)),
)


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


def in_turns(blocks: Sequence[Callable[[], float]], turns: int) -> list[list[float]]:
    """The time of each block in each turn, after one to get warm."""
    return [[block() for block in blocks] for _ in range(turns + 1)][1:]


def within(context: AbstractContextManager[Any], block: Callable[[], float]) -> float:
    with context:
        return block()


def tournament(width: int, count: int, spread: bool, turns: int) -> tuple[str, ...]:
    """The plain step, the other loops' steps over it, and what one call and one pass are worth."""
    data = batches(width)
    with ExitStack() as around:
        loops = [plain(width), held(width, 16, count, spread), held(width, 1, count, spread)]
        steps = [around.enter_context(each) for each in loops]
        alone, together, apart = (timed(step, data, time.thread_time) for step in steps)
        measured = in_turns((alone, together, lambda: within(ALONE, together), apart), turns)
    over_plain = [Ratio.of([turn[place] / turn[0] for turn in measured]) for place in (1, 2, 3)]
    over_shared = [Ratio.of([turn[place] / turn[1] for turn in measured]) for place in (2, 3)]
    step = statistics.median(turn[0] for turn in measured)
    return (f"{step * 1e6:,.0f} us", *map(str, (*over_plain, *over_shared)))


def tournaments(turns: int) -> Table:
    """What one call for equal bodies and one pass for all seeds are worth."""
    table = Table(title=f"Tournaments, {turns} turns of {BLOCK} steps")
    table.add_column("seeds")
    columns = ("h", "plain step", "one call / plain", "called / plain", "apart / plain")
    for column in (*columns, "called / one call", "apart / one call"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, count, spread, widths in TOURNAMENTS:
        for width in widths:
            table.add_row(name, str(width), *tournament(width, count, spread, turns))
    return table


def costless(seed: Seed, captured: Captured) -> Tensor:
    """What a body that takes no time would give; the host's backward pass is run for it."""
    return torch.zeros_like(captured.h) + 0.0 * next(seed.body.parameters()).sum()


def left_to_gain(width: int, layers: int, turns: int) -> tuple[str, str]:
    """A step of seeds of rank 8, one in each of ``layers`` layers, and the same whose bodies cost
    nothing over it."""
    torch.manual_seed(0)
    model, data = mlp(width, (width,) * layers, 10), batches(width)
    lattice = Lattice(model, adam(model), lambda: model(data[0][0]))
    places = [s for s in lattice.map.slots.values() if s.source == "output" and s.id != "head"]
    seeds = [new_seed(number, slot, low_rank(width), 0) for number, slot in enumerate(places)]
    for seed in seeds:
        lattice.germinate(seed)
        give_optimizer(lattice, seed, 1.0)
    joint, loss_fn = JointOptimizer(seeds), classification_loss(model)

    def block() -> float:
        begun = time.thread_time()
        for batch in data:
            shared_step(model, seeds, loss_fn, batch, 0, joint)
        return (time.thread_time() - begun) / len(data)

    free = patch.object(bodies, "_addition", costless)
    measured = in_turns((block, lambda: within(free, block)), turns)
    step = statistics.median(turn[0] for turn in measured)
    return f"{step * 1e6:,.0f} us", str(Ratio.of([b / a for a, b in measured]))


def over_slots(turns: int) -> Table:
    """What one call for the equal bodies of several slots could be worth at most."""
    table = Table(title="Equal seeds of rank 8, one in each layer")
    for column in ("layers", "h", "shared step", "bodies free / shared"):
        table.add_column(column, justify="right")
    for layers, width in ((4, 64), (8, 64), (16, 64), (4, 256), (8, 256), (4, 1024)):
        table.add_row(str(layers), str(width), *left_to_gain(width, layers, turns))
    return table


def main() -> None:
    """Print the tables; ratios are medians over turns with their 95 % bootstrap intervals."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--turns", type=int, default=6, help="turns a row")
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    Console(width=170).print(tournaments(turns))
    Console(width=170).print(over_slots(turns))


if __name__ == "__main__":
    main()
