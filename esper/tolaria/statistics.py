"""Paired comparison of two models on the same held-out batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PairedGain:
    """How much lower one model's loss is than another's, batch by batch.

    ``relative`` is the mean difference as a fraction of the baseline's mean loss, and
    ``error`` its standard error in the same unit over ``batches`` pairs.
    """

    relative: float
    error: float
    batches: int

    def lower(self, level: float) -> float:
        """Lower end of the one-sided interval that misses with probability ``level``.

        Student's t over the paired differences, ``batches - 1`` degrees of freedom.
        """
        from scipy import stats

        if self.batches < 2 or not math.isfinite(self.relative):
            return -math.inf
        return self.relative - float(stats.t.ppf(1.0 - level, self.batches - 1)) * self.error


def paired_gain(baseline: Sequence[float], candidate: Sequence[float]) -> PairedGain:
    """The gain of ``candidate`` over ``baseline``, two lists of losses of the same batches.

    A loss that is not finite makes the gain minus infinity: nothing is won by breaking.

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    if len(baseline) != len(candidate) or not baseline:
        raise ValueError(
            f"got {len(baseline)} and {len(candidate)} losses, wanted equally many, at least one"
        )
    mean = math.fsum(baseline) / len(baseline)
    differences = [a - b for a, b in zip(baseline, candidate, strict=True)]
    if not all(map(math.isfinite, differences)) or mean <= 0.0:
        return PairedGain(-math.inf, math.inf, len(baseline))
    centre = math.fsum(differences) / len(differences)
    spread = math.fsum((d - centre) ** 2 for d in differences) / max(1, len(differences) - 1)
    error = math.sqrt(spread / len(differences))
    return PairedGain(centre / mean, error / mean, len(baseline))


def spent(budget: float, test: int) -> float:
    """The share of an error ``budget`` that the ``test``-th test (from 1) may spend.

    ``6 / (pi * k)**2`` of it, which sums to the whole budget over all tests.
    """
    return budget * 6.0 / (math.pi * test) ** 2
