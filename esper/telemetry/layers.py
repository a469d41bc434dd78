"""The layers of a host that telemetry looks at, and their inputs and gradients as matrices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, unfold
from torch.nn.utils import parametrize

from esper.kasmina.graft import host_of, module_at
from esper.kasmina.signature import Slot
from esper.kasmina.slot_types import slot_type

MAX_ROWS = 2048
"""Examples and positions of one batch that enter second moments; sums over all of a sequence's
tokens or an image's pixels would cost more than the training step that they describe."""


@dataclass(frozen=True)
class Layer:
    """A module that carries a slot.

    ``axis`` is the feature axis of its input and output with the batch first; ``batch_axis`` is
    where the host has the batch.
    """

    name: str
    module: nn.Module
    axis: int
    batch_axis: int

    @property
    def kind(self) -> str:
        """The type's name, as the user wrote it."""
        return parametrize.type_before_parametrizations(self.module).__name__

    @property
    def linear(self) -> bool:
        """Whether the output is a matrix, the layer's weights, times what ``rows`` gives."""
        module = self.module
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            return module.groups == 1
        return isinstance(module, nn.Linear)

    @property
    def constant(self) -> bool:
        """Whether the weights include a bias."""
        return isinstance(getattr(self.module, "bias", None), Tensor)


def layers_of(model: nn.Module, slots: Iterable[Slot]) -> list[Layer]:
    """The layers that carry slots, in order of the forward pass; graft points are looked through.

    A block is left to the layers inside it.
    """
    layers = []
    for slot in slots:
        if slot.source == "output":
            module = host_of(module_at(model, slot.end))
            kind = slot_type(module)
            if kind is not None:
                layers.append(Layer(slot.end, module, kind.feature_axis, slot.batch_axis))
    return layers


def outside(slots: Iterable[Slot], place: Slot) -> list[Slot]:
    """The output slots of the sections that a seed in ``place`` leaves as they are."""
    outputs = [slot for slot in slots if slot.source == "output"]
    names = [slot.end for slot in outputs]
    inside = range(names.index(place.start), names.index(place.end) + 1)
    return [slot for position, slot in enumerate(outputs) if position not in inside]


def sampled(y: Tensor, axis: int) -> int:
    """How many examples of a batch make up ``MAX_ROWS``; ``y`` is an input or output of a layer."""
    positions = y[:1].numel() // max(1, y.shape[axis])
    return min(y.shape[0], max(1, MAX_ROWS // max(1, positions)))


def input_rows(layer: Layer, x: Tensor) -> Tensor:
    """What the layer's weights are multiplied with, ``[rows, features]``: a row for each example
    and position. The patches of a convolution, in the order of ``weight.flatten(1)``; the features
    themselves of a layer without weights. ``x`` has the batch first."""
    module = layer.module
    if layer.linear and isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return _patches(module, x)
    return output_rows(layer, x)


def output_rows(layer: Layer, y: Tensor) -> Tensor:
    """The layer's output, or its gradient, in rows that belong to those of ``input_rows``."""
    rows = y.movedim(layer.axis, -1)
    return rows.reshape(-1, rows.shape[-1])


def _patches(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    # What a convolution pads with, whichever way its padding was given.
    border = module._reversed_padding_repeated_twice
    padded = pad(
        x, border, mode="constant" if module.padding_mode == "zeros" else module.padding_mode
    )
    sizes: list[tuple[Any, ...]] = [module.kernel_size, module.dilation, module.stride]
    if isinstance(module, nn.Conv1d):
        padded = padded.unsqueeze(2)
        sizes = [(1, *size) for size in sizes]
    kernel, dilation, stride = sizes
    columns: Tensor = unfold(padded, kernel, dilation, 0, stride)
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])


def accumulating(dtype: torch.dtype) -> torch.dtype:
    """What sums over values of ``dtype`` are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
