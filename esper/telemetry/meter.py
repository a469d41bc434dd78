"""What is gathered of one layer over some passes, and its figures."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.kasmina import ops
from esper.telemetry.layers import (
    Layer,
    accumulating,
    input_rows,
    output_rows,
    sampled,
)
from esper.telemetry.moments import Bottleneck, Moments, Spread

MAX_INPUTS = 4096
"""Inputs of a layer (of a patch, for a convolution) beyond which its second moments are too large
to keep; its bottleneck is then not measured, and its effective rank is sketched."""


@dataclass(frozen=True)
class LayerFigures:
    """One layer, over the examples that it was measured on.

    Counts are of features. ``dead`` inputs were zero in every example and position, ``silent`` ones
    did not vary; ``idle`` outputs got a gradient of exactly zero everywhere. ``largest`` is the
    largest finite magnitude of an input, ``not_finite`` counts elements of inputs and gradients.
    Gradients are of one example's loss with respect to the layer's output; ``gradient`` is their
    root mean square length.

    ``unreachable`` is the fraction of the change that the loss asks of the output (in squares) that
    the layer's own weights cannot give, ``bottleneck`` the same in units of ``gradient`` squared
    (``esper.telemetry.moments``).

    Figures are not a number where they cannot be had: ``effective_rank`` and ``bottleneck`` of too
    few examples, the bottleneck of layers without a weight matrix, gradients where none arrive.
    """

    name: str
    kind: str
    inputs: int
    outputs: int
    examples: int
    dead: int
    silent: int
    idle: int
    largest: float
    not_finite: int
    gradient: float
    effective_rank: float
    unreachable: float
    bottleneck: float


class LayerMeter:
    """Gathers one layer's statistics on its device; nothing waits for it until they are read.

    ``memory`` is the weight that older second moments keep whenever a batch is added, and ``keep``
    the number of batches whose other statistics count.
    """

    def __init__(self, layer: Layer, *, memory: float = 1.0, keep: int | None = None) -> None:
        self.layer = layer
        self._memory = memory
        self._inputs: deque[tuple[int, Tensor]] = deque(maxlen=keep)
        self._gradients: deque[tuple[int, int, Tensor]] = deque(maxlen=keep)
        self._examples: deque[int] = deque(maxlen=keep)
        self._moments: Moments | None = None
        self._spread: Spread | None = None
        self._outputs = 0

    def add_forward(self, x: Tensor | None, y: Tensor) -> None:
        """Take in an input and an output, the batch first, as they are now."""
        axis = self.layer.axis
        self._outputs = y.shape[axis]
        self._examples.append(y.shape[0])
        if x is not None:
            self._inputs.append((_per_feature(x, axis), ops.slot_stats(x, axis)))

    def add_backward(self, x: Tensor | None, g: Tensor | None) -> None:
        """Take in what the weights were multiplied with, and the gradient of the mean loss with
        respect to the output; the batch first."""
        axis = self.layer.axis
        if g is not None:
            per_feature = _per_feature(g, axis)
            self._gradients.append((g.shape[0], per_feature, ops.slot_stats(g, axis)))
        if x is None:
            return
        if not self.layer.linear:
            self._add_spread(x)
        elif g is not None:
            count = sampled(g, axis)
            rows = input_rows(self.layer, x[:count])
            if rows.shape[1] > MAX_INPUTS:
                self._add_spread(x)
            else:
                self._add_moments(rows, output_rows(self.layer, g[:count]) * g.shape[0])

    def _add_spread(self, x: Tensor) -> None:
        rows = output_rows(self.layer, x[: sampled(x, self.layer.axis)])
        if self._spread is None:
            dtype = accumulating(rows.dtype)
            self._spread = Spread(
                rows.shape[1], dtype=dtype, device=rows.device, memory=self._memory
            )
        self._spread.add(rows)

    def _add_moments(self, rows: Tensor, gradient: Tensor) -> None:
        if self._moments is None:
            self._moments = Moments(
                rows.shape[1],
                gradient.shape[1],
                constant=self.layer.constant,
                dtype=accumulating(rows.dtype),
                device=rows.device,
                memory=self._memory,
            )
        self._moments.add(rows, gradient)

    def figures(self) -> LayerFigures:
        """Read what has been gathered; waits for the device."""
        inputs = _merged(list(self._inputs))
        gradients = _merged([(count, stats) for _, count, stats in self._gradients])
        wanted = _wanted(list(self._gradients))
        found = Bottleneck(math.nan, math.nan)
        if self._moments is not None:
            found = self._moments.bottleneck()
        rank = self._moments or self._spread
        not_finite = sum(float(stats[4].sum()) for stats in (inputs, gradients) if stats.numel())
        return LayerFigures(
            name=self.layer.name,
            kind=self.layer.kind,
            inputs=inputs.shape[1],
            outputs=self._outputs,
            examples=sum(self._examples),
            dead=int((inputs[3] == 1.0).sum()),
            silent=int((inputs[1] == 0.0).sum()),
            idle=int((gradients[3] == 1.0).sum()),
            largest=float(inputs[2].nan_to_num(0.0, posinf=0.0, neginf=0.0).max())
            if inputs.numel()
            else math.nan,
            not_finite=int(not_finite),
            gradient=math.sqrt(wanted) if wanted >= 0.0 else math.nan,
            effective_rank=math.nan if rank is None else rank.effective_rank(),
            unreachable=found.unreachable,
            bottleneck=found.unreachable * wanted,
        )


def held_back(layers: Iterable[LayerFigures]) -> list[LayerFigures]:
    """Layers by ``unreachable``, the largest first; those without it are left out."""
    known = [layer for layer in layers if math.isfinite(layer.unreachable)]
    return sorted(known, key=lambda layer: -layer.unreachable)


def _per_feature(x: Tensor, axis: int) -> int:
    return x.numel() // max(1, x.shape[axis])


def _wanted(gradients: list[tuple[int, int, Tensor]]) -> float:
    """``E|g|^2`` over examples, from statistics of the gradients of mean losses."""
    total, examples = 0.0, 0
    for batch, per_feature, stats in gradients:
        squares = float((stats[0].square() + stats[1]).sum()) * per_feature
        total += squares * batch**2
        examples += batch
    return total / examples if examples else math.nan


def _merged(batches: list[tuple[int, Tensor]]) -> Tensor:
    """The figures of ``slot_stats`` over several batches, from those of each and the number of
    elements in a feature."""
    if not batches:
        return torch.zeros(5, 0, dtype=torch.float64)
    stats = torch.stack([figures for _, figures in batches])
    counts = stats.new_tensor([[count] for count, _ in batches])
    finite = counts - stats[:, 4]
    total = finite.sum(0)
    mean = (stats[:, 0].nan_to_num(0.0) * finite).sum(0) / total
    squares = stats[:, 1].nan_to_num(0.0) + (stats[:, 0].nan_to_num(0.0) - mean).square()
    variance = (squares * finite).sum(0) / total
    largest = stats[:, 2].nan_to_num(0.0).amax(0)
    zeros = (stats[:, 3] * counts).sum(0) / counts.sum()
    return torch.stack([mean, variance, largest, zeros, stats[:, 4].sum(0)])
