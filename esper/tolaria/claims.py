"""At most one Growth at work on a model, and a word about one that was never closed."""

from __future__ import annotations

import logging
import weakref

from torch import nn

_logger = logging.getLogger("esper.tolaria")

_CLAIMS = weakref.WeakKeyDictionary[nn.Module, "Claim"]()


class Claim:
    """Somebody's hold on a model; it ends when it is released, or its owner is forgotten."""

    def __init__(self, model: nn.Module, owner: object, run: str) -> None:
        self._finalizer = weakref.finalize(owner, _tell_forgotten, run)
        _CLAIMS[model] = self

    @property
    def alive(self) -> bool:
        """Whether it still holds."""
        return self._finalizer.alive

    def release(self) -> None:
        """End it."""
        self._finalizer.detach()


def refuse_second(model: nn.Module) -> None:
    """Raise ``ValueError`` where somebody else is at work on ``model``."""
    claim = _CLAIMS.get(model)
    if claim is not None and claim.alive:
        raise ValueError(
            "another Growth is at work on this model, and two would undo each other's changes: "
            "close() it first"
        )


def _tell_forgotten(run: str) -> None:
    _logger.warning(
        "growth of run %s was never closed: its log is kept but has no end, and what was on trial "
        "is still in the model; call growth.close(), or use growth in a with block",
        run,
    )
