"""Which axis of an activation is the batch, and which holds the features.

Torch's attention and recurrent layers keep the batch on axis 1 unless they are told otherwise
(``batch_first=False``: the sequence comes first), and whatever stands between them then does too
without saying so. Where a host runs such a layer, the size of its batch tells the others' layout.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from esper.kasmina.slot_types import SlotType


class LayoutError(Exception):
    """Why an activation cannot be read; the message is the reason."""


@dataclass(frozen=True)
class Layout:
    """``shape`` is per example, ``axis`` the features' place in it; ``batch_axis`` is 0 or 1."""

    shape: tuple[int, ...]
    axis: int
    batch_axis: int
    batch: int

    @property
    def full(self) -> tuple[int, ...]:
        """The shape with the batch in it, as the host has it."""
        return (*self.shape[: self.batch_axis], self.batch, *self.shape[self.batch_axis :])

    def matches(self, other: Layout) -> bool:
        """Whether one seed can read this and add to ``other``: the same examples in one order."""
        mine, its = (
            (len(layout.shape), layout.batch_axis, layout.batch) for layout in (self, other)
        )
        return mine == its


def sequence_first(module: nn.Module) -> bool:
    """Whether ``module`` says that its batch stands on axis 1."""
    return getattr(module, "batch_first", True) is False


def layout_of(module: nn.Module, kind: SlotType, x: Tensor, batches: Iterable[int]) -> Layout:
    """The layout of ``x``, an activation that ``module`` is given or gives.

    ``batches`` are the batch sizes of the sequence-first modules of the host.

    Raises:
        LayoutError: ``x`` has no batch, no such feature axis, or may be laid out in two ways.
    """
    where = f"activation of shape {tuple(x.shape)}"
    if x.dim() < 2 or kind.dimensions not in (None, x.dim()):
        raise LayoutError(f"{where} has no batch dimension")
    axis = kind.feature_axis if kind.feature_axis >= 0 else x.dim() + kind.feature_axis
    if not 0 < axis < x.dim():
        raise LayoutError(f"{where} has no features on axis {kind.feature_axis}")
    batch_axis = _batch_axis(module, x, axis, frozenset(batches), where)
    shape = tuple(size for place, size in enumerate(x.shape) if place != batch_axis)
    return Layout(shape, axis - 1, batch_axis, x.shape[batch_axis])


def _batch_axis(
    module: nn.Module, x: Tensor, axis: int, batches: frozenset[int], where: str
) -> int:
    if axis < 2:
        if sequence_first(module):
            raise LayoutError(f"{where} has its features where batch_first=False has the batch")
        return 0
    if sequence_first(module):
        return 1
    first, second = (x.shape[place] in batches for place in (0, 1))
    if first and second:
        raise LayoutError(
            f"{where}: the host runs sequence-first elsewhere, and batch and sequence are of one "
            "length here; show a batch of another size"
        )
    return int(second)
