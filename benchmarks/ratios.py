"""Two calls timed in turns, so that whatever else the machine does hits both.

The interval of a ratio is the 95 % bootstrap interval of the median. With one thread times are
that thread's own (``time.thread_time``): a shared machine takes it off the processor at will.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from esper.kasmina import native

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One operator and what a user would write, or could at best hope for, instead."""

    name: str
    operator: Call
    peer_name: str
    peer: Call


def seconds(call: Call, repeats: int) -> float:
    """Mean time of one call."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def pairs(case: Case, budget: float = 1.5) -> list[tuple[float, float]]:
    """Times of operator and peer in turns, for about ``budget`` seconds."""
    for call in (case.operator, case.peer):
        seconds(call, 20)
    repeats = max(1, int(5e-3 / seconds(case.operator, 5)))
    measured: list[tuple[float, float]] = []
    end = time.perf_counter() + budget
    while len(measured) < 20 or time.perf_counter() < end:
        first = seconds(case.operator, repeats)
        measured.append((first, seconds(case.peer, repeats)))
    return measured


def interval(values: list[float], draws: int = 500) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    source = random.Random(0)
    medians = sorted(statistics.median(source.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def print_table(cases: Iterable[Case]) -> None:
    """Print the table of ratios; below 1 the operator is faster."""
    table = Table(
        title=f"torch {torch.__version__}, {native.cpu_isa()}, {torch.get_num_threads()} threads"
    )
    for column in ("operator", "us", "peer", "us", "ratio", "95 % interval"):
        table.add_column(column, justify="left" if column in ("operator", "peer") else "right")
    for case in cases:
        measured = pairs(case)
        ratios = [own / other for own, other in measured]
        low, high = interval(ratios)
        own, other = (statistics.median(side) * 1e6 for side in zip(*measured, strict=True))
        table.add_row(
            case.name,
            f"{own:.1f}",
            case.peer_name,
            f"{other:.1f}",
            f"{statistics.median(ratios):.2f}",
            f"{low:.2f} .. {high:.2f}",
        )
    Console(width=140).print(table)
