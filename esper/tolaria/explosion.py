"""When a loss counts as exploded."""

from __future__ import annotations

import math

_MEMORY = 0.98


def exploded(loss: float, before: float, factor: float) -> bool:
    """Whether ``loss`` is no number, or ``factor - 1`` times the size of ``before`` above it."""
    far = before != 0.0 and loss - before > abs(before) * (factor - 1.0)
    return far or not math.isfinite(loss)


class TrainingLoss:
    """The running mean of a loss, to which the next one is held."""

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._typical: float | None = None

    def explodes(self, loss: float) -> bool:
        """Whether ``loss`` is exploded; if not, it joins the mean."""
        typical = loss if self._typical is None else self._typical
        if exploded(loss, typical, self._factor):
            return True
        self._typical = _MEMORY * typical + (1.0 - _MEMORY) * loss
        return False

    def forget(self) -> None:
        """Begin anew."""
        self._typical = None
