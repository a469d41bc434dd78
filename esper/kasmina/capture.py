"""What one pass of a host has at some of its slots, for seeds that learn outside of that pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from esper.kasmina.activation import activation, given, input_name, turned, with_activation
from esper.kasmina.graft import SpanInput, host_of
from esper.kasmina.isolation import uncompiled
from esper.kasmina.signature import Slot


@dataclass
class Captured:
    """What a pass had at ``slot``.

    ``x`` is what a seed reads there and ``h`` the slot's activation, both outside any graph and
    with the batch first; ``output`` is what the slot's last module returned, as the host has it.
    ``calls`` counts how often the module ran; what stands here is of its first call. ``gradient``,
    of the shape of ``h``, is there after :meth:`Capture.differentiate` where the loss depends on
    ``h``.
    """

    slot: Slot
    x: Tensor
    h: Tensor
    output: Any
    calls: int = 1
    gradient: Tensor | None = None
    edge: GradientEdge | None = None


Visit = Callable[[Captured], None]
"""Called during the pass, right at the slot: under the autocast that the host runs under there."""


class Capture:
    """The slots of one pass by id, in the order in which the pass came to them."""

    def __init__(self) -> None:
        self.at: dict[str, Captured] = {}

    def differentiate(self, loss: Tensor) -> None:
        """Fill in the gradients of the scalar ``loss`` of the pass, which captured with
        ``gradients``; call it inside :func:`capturing`."""
        found = [captured for captured in self.at.values() if captured.edge is not None]
        if not found or not loss.requires_grad:
            return
        edges = [captured.edge for captured in found]
        gradients = torch.autograd.grad(loss, edges, allow_unused=True)  # type: ignore[arg-type]
        for captured, gradient in zip(found, gradients, strict=True):
            if gradient is not None:
                captured.gradient = turned(gradient, captured.slot.batch_axis)


@contextmanager
def capturing(
    model: nn.Module,
    slots: Iterable[Slot],
    visit: Visit | None = None,
    *,
    gradients: bool = False,
) -> Iterator[Capture]:
    """Capture what the pass of ``model`` that is run inside has at ``slots``.

    The pass computes what it would compute without this; a compiled host runs uncompiled, because
    compiled code does not see hooks added later. To leave no trace run it inside a ``HostGuard``.

    Args:
        model: the host.
        slots: which of its slots.
        visit: called once for each slot as the pass comes to it, outside any graph of the host.
        gradients: make it possible to :meth:`Capture.differentiate`, for a frozen host too.
    """
    capture = Capture()
    ends: dict[str, list[Slot]] = {}
    for slot in {slot.id: slot for slot in slots}.values():
        ends.setdefault(slot.end, []).append(slot)
    handles: list[RemovableHandle] = []
    for end, here in ends.items():
        inputs = {slot.start: SpanInput() for slot in here if slot.source == "span"}
        for start, recorder in inputs.items():
            handles.append(keep_input(model.get_submodule(start), recorder))
        hook = _hook(capture, here, inputs, visit, gradients)
        handles.append(model.get_submodule(end).register_forward_hook(hook))
    try:
        with uncompiled():
            yield capture
    finally:
        for handle in handles:
            handle.remove()


def keep_input(start: nn.Module, recorder: SpanInput) -> RemovableHandle:
    """Let ``recorder`` have what ``start``, where a span begins, is given in each pass."""
    first = input_name(host_of(start))

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorder.value = given(args, kwargs, first)

    return start.register_forward_pre_hook(keep, with_kwargs=True)


def _hook(
    capture: Capture,
    slots: list[Slot],
    inputs: dict[str, SpanInput],
    visit: Visit | None,
    gradients: bool,
) -> Callable[..., Any]:
    def seen(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        h: Tensor = activation(output)
        # The host goes on with a copy: it may write in place what a seed has yet to read.
        y = (_learning(h) if gradients else h).clone()
        for slot in slots:
            if slot.id in capture.at:
                capture.at[slot.id].calls += 1
                continue
            x = inputs[slot.start].take() if slot.source == "span" else h
            x, seen_h = (turned(t.detach(), slot.batch_axis) for t in (x, h))
            captured = capture.at[slot.id] = Captured(slot, x, seen_h, output)
            captured.edge = get_gradient_edge(y) if y.requires_grad else None
            if visit is not None:
                visit(captured)
        return with_activation(output, y)

    return seen


def _learning(h: Tensor) -> Tensor:
    return h if h.requires_grad else h.detach().requires_grad_()
