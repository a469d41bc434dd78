"""What telemetry costs: steps with it against plain ones, on copies of one host, in turns.

``python -m benchmarks.bench_telemetry`` prints, for each host, the ratio of step times with
statistics of every layer at every step, and with all layers measured every ``EVERY`` steps (second
moments for the expressivity bottleneck), that pass amortised over them; the plain host against
itself (A/A) shows what this machine calls equal. Times are of the thread, not of the clock: a
machine that others use stops a thread at will. Medians, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import copy
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from esper.kasmina.shadow import LossFunction
from esper.kasmina.slots import find_slots
from esper.telemetry.telemetry import Telemetry
from esper.tolaria.models import cnn, mlp
from esper.tolaria.training import Batch, classification_loss
from esper.tolaria.transformer import Transformer

EVERY = 250
SECONDS = 12.0
BATCH = 128


@dataclass(frozen=True)
class Case:
    """A host and batches for it."""

    name: str
    host: nn.Module
    batches: list[Batch]


@dataclass
class Trainee:
    """One copy of a host, trained step by step."""

    model: nn.Module
    batches: list[Batch]
    every_step: bool = False
    sampled: bool = False

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.loss_fn: LossFunction = classification_loss(self.model)
        self.steps = 0
        self.telemetry: Telemetry | None = None
        if self.every_step or self.sampled:
            found = find_slots(self.model, lambda: self.loss_fn(self.batches[0]))
            self.telemetry = Telemetry(
                self.model,
                self.optimizer,
                self.loss_fn,
                found.slots.values(),
                every_step=self.every_step,
                sample_every=1 if self.sampled else 0,
            )

    def step(self) -> None:
        """One optimizer step; telemetry of every step is part of it."""
        loss: Tensor = self.loss_fn(self.batches[self.steps % len(self.batches)])
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        if self.telemetry is not None and self.every_step:
            self.telemetry.end_step(self.steps, None)
            self.telemetry.begin_step()

    def sample(self) -> None:
        """One pass that measures all layers."""
        if self.telemetry is not None:
            self.steps += 1
            self.telemetry.end_step(self.steps, self.batches[self.steps % len(self.batches)])


def vectors(features: int, classes: int) -> list[Batch]:
    return [(torch.randn(BATCH, features), torch.randint(classes, (BATCH,))) for _ in range(20)]


def cases() -> list[Case]:
    """MLPs of two hidden layers, a small CNN, a small transformer."""
    torch.manual_seed(0)
    found = [
        Case(f"MLP 256-{w}-{w}-10", mlp(256, (w, w), 10), vectors(256, 10))
        for w in (64, 256, 512, 1024)
    ]
    images = [(torch.randn(32, 1, 28, 28), torch.randint(10, (32,))) for _ in range(8)]
    found.append(Case("CNN 16-32, batch 32 of 28 x 28", cnn(1, 28, (16, 32), (64,), 10), images))
    text = [(torch.randint(60, (16, 64)), torch.randint(60, (16, 64))) for _ in range(8)]
    model = Transformer(64, 60, width=128, heads=4, layers=2, hidden=256, activation=nn.GELU)
    found.append(Case("Transformer 128, 2 layers, batch 16 of 64", model, text))
    return found


def seconds(call: Callable[[], None], repeats: int) -> float:
    """Thread time of one call."""
    start = time.thread_time()
    for _ in range(repeats):
        call()
    return (time.thread_time() - start) / repeats


def interval(values: list[float], draws: int = 500) -> str:
    """The median with its 95 % bootstrap interval."""
    source = random.Random(0)
    drawn = sorted(statistics.median(source.choices(values, k=len(values))) for _ in range(draws))
    low, high = drawn[int(0.025 * draws)], drawn[int(0.975 * draws)]
    return f"{statistics.median(values):.3f} [{low:.3f}, {high:.3f}]"


def measure(case: Case) -> tuple[str, ...]:
    """One row of the table."""
    plain, again, watched, sampled = (
        Trainee(copy.deepcopy(case.host), case.batches, **options)
        for options in ({}, {}, {"every_step": True}, {"sampled": True})
    )
    calls = [plain.step, again.step, watched.step, sampled.sample]
    for call in calls:
        seconds(call, 10)
    repeats = max(1, int(4e-3 / seconds(plain.step, 5)))
    rounds: list[list[float]] = []
    end = time.perf_counter() + SECONDS
    while len(rounds) < 20 or time.perf_counter() < end:
        order = calls if len(rounds) % 2 else calls[::-1]
        took = [seconds(call, repeats) for call in order]
        rounds.append(took if len(rounds) % 2 else took[::-1])
    step = statistics.median(times[0] for times in rounds)
    return (
        case.name,
        f"{1e6 * step:,.0f}",
        interval([times[1] / times[0] for times in rounds]),
        interval([times[2] / times[0] for times in rounds]),
        interval([times[3] / times[0] for times in rounds]),
        f"{1.0 + statistics.median(t[3] / t[0] for t in rounds) / EVERY:.4f}",
    )


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    table = Table(title=f"torch {torch.__version__}, 1 thread")
    amortised = f"sampled every {EVERY}"
    for column in ("host", "plain, us", "A/A", "every step", "a sample, steps", amortised):
        table.add_column(column, justify="left" if column == "host" else "right")
    for case in cases():
        table.add_row(*measure(case))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
