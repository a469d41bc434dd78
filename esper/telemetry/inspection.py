"""What each layer of a model does on some batches, for a person who wonders what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from esper.kasmina.shadow import LossFunction
from esper.kasmina.slots import find_slots
from esper.telemetry.errors import TelemetryError
from esper.telemetry.layers import layers_of
from esper.telemetry.meter import LayerFigures, LayerMeter, held_back
from esper.telemetry.passes import measure

_COLUMNS = (
    "layer",
    "kind",
    "in",
    "out",
    "dead in",
    "idle out",
    "rank in",
    "gradient",
    "unreachable",
)


@dataclass(frozen=True)
class Inspection:
    """Figures of every layer that can carry a slot, in order of the forward pass.

    ``left_out`` holds the reason for every other one. Printed, it is a table.
    """

    layers: tuple[LayerFigures, ...]
    left_out: Mapping[str, str]

    @property
    def held_back(self) -> tuple[LayerFigures, ...]:
        """The layers whose weights miss most of what the loss asks of them, most first."""
        return tuple(held_back(self.layers))

    def __str__(self) -> str:
        rows = [_COLUMNS, *map(_row, self.layers)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
        lines = [_line(row, widths) for row in rows]
        broken = [layer for layer in self.layers if layer.not_finite]
        lines += [f"{layer.name}: {layer.not_finite} elements not finite" for layer in broken]
        lines += [f"not measured: {name}: {reason}" for name, reason in self.left_out.items()]
        return "\n".join(lines)


def inspect(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    evaluation: bool = False,
) -> Inspection:
    """Measure every layer of ``model`` on ``batches``: dead units, effective rank of what it reads,
    gradients, and how much of the change that the loss asks of it its weights cannot give.

    The model keeps its bits, gradients and random state. Each batch costs a forward pass, a
    backward pass without gradients of parameters, and second moments. The expressivity bottleneck
    needs more examples (times positions) than the layer has inputs; with fewer it is not a number.

    Args:
        model: any module; compiled ones run uncompiled here.
        loss_fn: the objective of training: takes a batch, runs ``model`` once, returns the mean
            loss of the batch.
        batches: what ``loss_fn`` takes; at least one. Their first dimension is the batch.
        evaluation: run the model in evaluation mode, in place of the mode that it is in.

    Returns:
        figures of the layers (see ``LayerFigures``); ``print`` shows them as a table.

    Raises:
        TelemetryError: there are no batches.
        SlotError: the model has no layer that could be measured.
        ObjectiveError: ``loss_fn`` returns no scalar.
    """
    given = list(batches)
    if not given:
        raise TelemetryError("got no batches, wanted at least one")
    found = find_slots(model, lambda: loss_fn(given[0]))
    meters = [LayerMeter(layer) for layer in layers_of(model, found.slots.values())]
    for batch in given:
        measure(model, meters, loss_fn, batch, evaluation=evaluation)
    return Inspection(tuple(meter.figures() for meter in meters), found.left_out)


def _row(layer: LayerFigures) -> tuple[str, ...]:
    return (
        layer.name,
        layer.kind,
        str(layer.inputs),
        str(layer.outputs),
        _count(layer.dead),
        _count(layer.idle),
        _number(layer.effective_rank, ".1f"),
        _number(layer.gradient, ".3g"),
        _number(layer.unreachable, ".0%"),
    )


def _count(value: int) -> str:
    return str(value) if value else "-"


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "-"


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    left = [text.ljust(width) for text, width in zip(row[:2], widths[:2], strict=True)]
    right = [text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=True)]
    return "  ".join(left + right).rstrip()
