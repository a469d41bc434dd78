"""Two things timed in turns, so that whatever else the machine does hits both."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self


def interval(values: Sequence[float], draws: int = 500) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    source = random.Random(0)
    medians = sorted(statistics.median(source.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios with its 95 % interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """That of ``values``."""
        return cls(statistics.median(values), *interval(values))

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def in_turns(
    first: Callable[[], float], second: Callable[[], float], pairs: int
) -> list[tuple[float, float]]:
    """Times of both for each pair, either one first in turn; each call times itself."""
    measured = []
    for pair in range(pairs):
        if pair % 2:
            other = second()
            measured.append((first(), other))
        else:
            own = first()
            measured.append((own, second()))
    return measured
