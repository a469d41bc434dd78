"""What a dormant lattice costs: training with ``growth.step`` against the plain loop.

Two copies of one host are trained in turns on the same batches, one of them watched for growth
that never comes; the time of a block covers exactly one look at the held-out batches. The same
is measured with two plain hosts (A/A), which shows what this machine calls equal. Reported is the
mean ratio over pairs of blocks with its 95 % interval (Student's t), observations included, and
the cost of the call itself between two observations.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from scipy import stats
from torch import Tensor, nn

from esper.log.event_log import EventLog
from esper.log.memory import MemoryStore
from esper.tolaria.growth import Growth
from esper.tolaria.models import mlp
from esper.tolaria.settings import GrowthSettings
from esper.tolaria.training import Batch, classification_loss
from esper_events.keys import SigningKey

BATCH = 128
PAIRS = 20
SLICE = 5
SETTINGS = GrowthSettings(max_growths=0)
Step = Callable[[Batch], None]


@dataclass(frozen=True)
class Ratio:
    """Mean ratio of paired block times with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def batches(features: int, count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(BATCH, features, generator=generator),
            torch.randint(10, (BATCH,), generator=generator),
        )
        for _ in range(count)
    ]


def plain_step(model: nn.Module) -> Step:
    optimizer = torch.optim.Adam(model.parameters())
    loss_fn = classification_loss(model)

    def step(batch: Batch) -> None:
        loss = loss_fn(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def watched_step(model: nn.Module, probe: list[Batch]) -> tuple[Step, Growth]:
    optimizer = torch.optim.Adam(model.parameters())
    loss_fn = classification_loss(model)
    log = EventLog(MemoryStore(), SigningKey.generate(), "dormant")
    growth = Growth(model, optimizer, loss_fn, probe, settings=SETTINGS, log=log)

    def step(batch: Batch) -> None:
        loss: Tensor = loss_fn(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        growth.step(batch, loss)

    return step, growth


def paired_blocks(first: Step, second: Step, data: list[Batch]) -> Iterator[float]:
    """The ratio of two block times, slices of the blocks in turns, either one first in turn."""
    for pair in range(PAIRS):
        spent = [0.0, 0.0]
        for start in range(0, SETTINGS.observe_every, SLICE):
            order = (0, 1) if (start // SLICE + pair) % 2 else (1, 0)
            for side in order:
                step = (first, second)[side]
                begun = time.perf_counter()
                for index in range(start, start + SLICE):
                    step(data[index % len(data)])
                spent[side] += time.perf_counter() - begun
        yield spent[0] / spent[1]


def ratio(first: Step, second: Step, data: list[Batch]) -> Ratio:
    for batch in data[:20]:
        first(batch)
        second(batch)
    values = list(paired_blocks(first, second, data))
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return Ratio(mean, mean - half, mean + half)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("widths", [(64, 64), (256, 256)], ids=["h=64", "h=256"])
def test_dormant(benchmark: BenchmarkFixture, widths: tuple[int, int]) -> None:
    torch.set_num_threads(1)
    data = batches(256, 20)
    host = mlp(256, widths, 10)
    watched, growth = watched_step(copy.deepcopy(host), batches(256, 12))
    plain, again = plain_step(copy.deepcopy(host)), plain_step(copy.deepcopy(host))
    control = ratio(again, plain, data)
    dormant = ratio(watched, plain, data)
    growth.step(data[0], None)
    benchmark.extra_info |= {"dormant": str(dormant), "control": str(control)}
    benchmark.pedantic(growth.step, (data[0],), rounds=100)  # type: ignore[no-untyped-call]
    print(f"\nwidths {widths}: watched / plain {dormant}, A/A {control}")
    growth.close()
