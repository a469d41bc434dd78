"""How the user's own loop trains the host on a batch, so that a fork is trained exactly so."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from esper.kasmina.errors import ObjectiveError
from esper.kasmina.shadow import LossFunction, scalar_loss

Update = Callable[[Tensor], None]
"""What the user does with a loss: backward, clipping if any, one optimizer step."""

AccumulatedUpdate = Callable[[Iterator[Tensor]], None]
"""The same over several micro-batches: each loss that it takes is that of the next one."""


class Stateful(Protocol):
    """What keeps a state from one update to the next: a gradient scaler, an average of weights."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> object: ...


@dataclass(frozen=True)
class HostUpdate:
    """The update of the user's loop, and the objects besides model and optimizer it changes.

    With ``accumulate`` a batch is the sequence of the micro-batches of one optimizer step.
    """

    update: Update | AccumulatedUpdate
    stateful: Sequence[Stateful] = ()
    accumulate: bool = False

    def run(self, loss_fn: LossFunction, batch: Any) -> float:
        """Train on ``batch``; returns its loss, the mean over micro-batches.

        A loss without a gradient, that of a host which is frozen as a whole, trains nothing.

        Raises:
            ObjectiveError: the update did not take the loss of every micro-batch.
        """
        parts = batch if self.accumulate else (batch,)
        losses: list[Tensor] = []

        def each() -> Iterator[Tensor]:
            for part in parts:
                loss = scalar_loss(loss_fn(part))
                losses.append(loss.detach())
                yield loss

        # What the flag says of the update's type, no type checker can see.
        given = each() if self.accumulate else next(each())
        if not isinstance(given, Tensor) or given.requires_grad:
            self.update(given)  # type: ignore[arg-type]
        if not losses or len(losses) < len(parts):
            raise ObjectiveError(
                f"update took {len(losses)} losses of a batch of {len(parts)} micro-batches, "
                "wanted one of each: with accumulate=True it is given an iterator over them"
            )
        return sum(map(float, losses)) / len(losses)

    def one(self, batch: Any) -> Any:
        """What ``loss_fn`` takes of ``batch``: the first micro-batch, or the batch itself."""
        return batch[0] if self.accumulate else batch


class OwnStates:
    """A branch's own states of stateful objects, exchanged with the live ones on demand."""

    def __init__(self, objects: Sequence[Stateful]) -> None:
        self._objects = tuple(objects)
        self._other = self._current()

    def swap(self) -> None:
        """Exchange the branch's states with the live ones."""
        other, self._other = self._other, self._current()
        for held, state in zip(self._objects, other, strict=True):
            held.load_state_dict(state)

    def _current(self) -> list[dict[str, Any]]:
        return [copy.deepcopy(held.state_dict()) for held in self._objects]
