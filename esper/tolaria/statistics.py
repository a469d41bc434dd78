"""Paired comparison of two models on the same held-out batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PairedGain:
    """How much lower one model's loss is than another's, batch by batch.

    ``relative`` is the mean difference as a fraction of the baseline's mean loss (the mean of its
    magnitudes, where losses can be below zero), and ``error`` its standard error in the same unit
    over ``batches`` pairs.
    """

    relative: float
    error: float
    batches: int

    def lower(self, level: float) -> float:
        """Lower end of the one-sided interval that misses with probability ``level``.

        Student's t over the paired differences, ``batches - 1`` degrees of freedom.
        """
        from scipy import stats

        if self.batches < 2 or level <= 0.0:
            return -math.inf
        if not math.isfinite(self.relative) or self.error == 0.0:
            return self.relative
        return self.relative - float(stats.t.ppf(1.0 - level, self.batches - 1)) * self.error


def paired_gain(baseline: Sequence[float], candidate: Sequence[float]) -> PairedGain:
    """The gain of ``candidate`` over ``baseline``, two lists of losses of the same batches.

    A candidate's loss that is not finite makes the gain minus infinity: nothing is won by
    breaking. Only a baseline's makes it infinite. Of a baseline that is zero throughout there is
    no fraction, and the gain is minus infinity.

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    if len(baseline) != len(candidate) or not baseline:
        raise ValueError(
            f"got {len(baseline)} and {len(candidate)} losses, wanted equally many, at least one"
        )
    count = len(baseline)
    if not all(map(math.isfinite, candidate)):
        return PairedGain(-math.inf, math.inf, count)
    if not all(map(math.isfinite, baseline)):
        return PairedGain(math.inf, 0.0, count)
    try:
        return _relative_gain(baseline, candidate)
    except OverflowError:
        return PairedGain(-math.inf, math.inf, count)


def _relative_gain(baseline: Sequence[float], candidate: Sequence[float]) -> PairedGain:
    count = len(baseline)
    scale = math.fsum(map(abs, baseline)) / count
    if scale == 0.0:
        return PairedGain(-math.inf, math.inf, count)
    differences = [a - b for a, b in zip(baseline, candidate, strict=True)]
    centre = math.fsum(differences) / count
    spread = math.fsum((d - centre) ** 2 for d in differences) / max(1, count - 1)
    return PairedGain(centre / scale, math.sqrt(spread / count) / scale, count)


def spent(budget: float, test: int) -> float:
    """The share of an error ``budget`` that the ``test``-th test (from 1) may spend.

    ``6 / (pi * k)**2`` of it, which sums to the whole budget over all tests.
    """
    return budget * 6.0 / (math.pi * test) ** 2
