"""One pass over a batch that measures layers and leaves the host as it was.

The host carries hooks for that pass only: between two passes nothing of telemetry is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from esper.kasmina.activation import activation, given, input_name, turned
from esper.kasmina.carriers import BLENDABLE
from esper.kasmina.isolation import HostGuard, uncompiled
from esper.kasmina.seed import evaluating
from esper.kasmina.shadow import LossFunction, scalar_loss
from esper.telemetry.errors import TelemetryError
from esper.telemetry.layers import Layer
from esper.telemetry.meter import LayerMeter


@dataclass
class _Call:
    """A layer's first call of a pass. ``edge`` leads to the output's gradient: the output itself
    may be written over by what follows it."""

    input: Tensor | None
    version: int
    edge: GradientEdge | None

    def unchanged_input(self) -> Tensor | None:
        x = self.input
        return x if x is not None and x._version == self.version else None


def measure(
    model: nn.Module,
    meters: Sequence[LayerMeter],
    loss_fn: LossFunction,
    batch: Any,
    *,
    evaluation: bool = False,
) -> None:
    """Run ``loss_fn`` on ``batch`` forward and backward, and give each meter its layer's part.

    The host keeps its bits: parameters, gradients, buffers, module state, random state. A compiled
    host runs uncompiled, because compiled code does not see hooks added later. ``evaluation`` runs
    it in evaluation mode, otherwise it stays in its own. No gradient of a parameter is computed,
    and nothing waits for the device unless ``loss_fn`` does.

    Raises:
        ObjectiveError: ``loss_fn`` returns no scalar.
        TelemetryError: no gradient can be taken through the model.
    """
    with ExitStack() as around:
        around.enter_context(HostGuard(model, freeze=False))
        if evaluation:
            around.enter_context(evaluating(model))
        around.enter_context(torch.enable_grad())
        around.enter_context(uncompiled())
        calls = around.enter_context(_watched(meters))
        loss = scalar_loss(loss_fn(batch))
        edges = {name: call.edge for name, call in calls.items() if call.edge is not None}
        found: dict[str, Tensor | None] = {}
        if edges and loss.requires_grad:
            # Inside the context: a checkpointed host runs its forward pass again for gradients.
            found = dict(zip(edges, _gradients(loss, list(edges.values())), strict=True))
        with torch.no_grad():
            for meter in meters:
                call = calls.get(meter.layer.name)
                if call is not None:
                    g = found.get(meter.layer.name)
                    turned_g = None if g is None else turned(g, meter.layer.batch_axis)
                    meter.add_backward(call.unchanged_input(), turned_g)


def _gradients(loss: Tensor, edges: list[GradientEdge]) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(loss, edges, allow_unused=True)
    except RuntimeError as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if "use_reentrant" in str(error):
            reason = "call torch.utils.checkpoint.checkpoint with use_reentrant=False"
        raise TelemetryError(f"no gradient of an activation can be taken here: {reason}") from error


@contextmanager
def _watched(meters: Sequence[LayerMeter]) -> Iterator[dict[str, _Call]]:
    calls: dict[str, _Call] = {}
    handles = [
        meter.layer.module.register_forward_hook(_hook(meter, calls), with_kwargs=True)
        for meter in meters
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _hook(meter: LayerMeter, calls: dict[str, _Call]) -> Any:
    layer = meter.layer
    first = input_name(layer.module)

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if layer.name in calls:  # A checkpointed host calls it again for its gradients.
            return
        y: Tensor = activation(output)
        x = _input(layer, given(args, kwargs, first))
        edge = get_gradient_edge(y) if y.requires_grad else None
        with torch.no_grad():
            meter.add_forward(x, turned(y.detach(), layer.batch_axis))
        calls[layer.name] = _Call(x, 0 if x is None else x._version, edge)

    return record


def _input(layer: Layer, x: Any) -> Tensor | None:
    if not isinstance(x, Tensor) or x.dtype not in BLENDABLE or x.is_nested:
        return None
    return turned(x.detach(), layer.batch_axis)
