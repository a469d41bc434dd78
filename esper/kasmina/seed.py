"""A seed outside the host's forward path, and the ways to switch it on in the shadow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.activation import activation, turned, with_activation
from esper.kasmina.capture import keep_input
from esper.kasmina.graft import SpanInput
from esper.kasmina.isolation import uncompiled
from esper.kasmina.onward import Onward
from esper.kasmina.signature import Slot
from esper_events.events import Objective


@dataclass(eq=False)
class Seed:
    """One attempt to grow: its number, its slot, its body and the optimizer of its trial.

    ``body`` maps ``[batch, *in_shape]`` to ``[batch, *out_shape]`` of the slot; ``recipe`` is the
    canonical text of the blueprint that it was built from, where there is one. ``objective`` is
    what it learns from in its trial, ``onward`` the way to the next layer where that needs one.
    """

    id: int
    slot: Slot
    blueprint: str
    body: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    shadow_steps: int = 0
    recipe: bytes = b""
    objective: Objective = "shadow"
    onward: Onward | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The seed's parameters, frozen ones included."""
        return list(self.body.parameters())

    @property
    def trainable(self) -> list[nn.Parameter]:
        """The parameters that its objective may change."""
        return [parameter for parameter in self.body.parameters() if parameter.requires_grad]

    def added(self, x: Tensor, h: Tensor) -> Tensor:
        """What the body gives on ``x``, to be added to ``h``, both with the batch first.

        Raises:
            ValueError: it is not of the shape of ``h``.
        """
        delta: Tensor = self.body(x)
        if delta.shape != h.shape:
            raise ValueError(
                f"its body gave {list(delta.shape)}, wanted the slot's {list(h.shape)}"
            )
        return delta


def give_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Leave each parameter its gradient, laid out in memory as the parameter is.

    The fused optimizers of torch on the CPU walk through both by memory alone; ``autograd.grad``,
    other than ``backward``, gives gradients of any layout.
    """
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if (
            gradient is not None
            and gradient.layout == torch.strided
            and gradient.stride() != parameter.stride()
        ):
            gradient = torch.empty_like(parameter).copy_(gradient)
        parameter.grad = gradient


@contextmanager
def switched_on(model: nn.Module, seed: Seed) -> Iterator[None]:
    """Let ``model`` compute with ``seed`` at alpha 1, by hooks that leave with the context.

    The seed reads detached activations. A compiled host runs uncompiled meanwhile, because
    compiled code does not see hooks added later. Gradients are taken inside the context: a
    checkpointed host runs its forward pass again for them.
    """
    span = SpanInput()

    def add(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        h: Tensor = activation(output)
        x = span.take() if seed.slot.source == "span" else h
        span.value = None
        delta: Tensor = seed.body(turned(x.detach(), seed.slot.batch_axis))
        return with_activation(output, h + turned(delta, seed.slot.batch_axis).to(h.dtype))

    handles = [model.get_submodule(seed.slot.end).register_forward_hook(add)]
    if seed.slot.source == "span":
        handles.append(keep_input(model.get_submodule(seed.slot.start), span))
    try:
        with uncompiled():
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode returns afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
