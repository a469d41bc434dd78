"""Finding the slots of a host: on a module's output, and on spans between two modules.

A host is traced once with a real batch. Only modules that are called exactly once in a forward
pass, under one name, can carry a slot; every other module is listed with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from esper.kasmina.errors import SlotError
from esper.kasmina.isolation import HostGuard, uncompiled
from esper.kasmina.signature import Signature

FEATURE_AXES: dict[type[nn.Module], int] = {
    nn.Linear: -1,
    nn.LayerNorm: -1,
    nn.Conv2d: 1,
    nn.BatchNorm1d: 1,
    nn.BatchNorm2d: 1,
}
"""The axis of the features in a module's output, batch dimension counted.

A subclass is no slot: it may keep its features elsewhere.
"""

BLENDABLE = (torch.float32, torch.float64, torch.bfloat16)
"""Activations that a graft can be blended into."""

MAX_SPAN = 3
"""A span reaches over at most so many slot modules."""


@dataclass(frozen=True, kw_only=True)
class Slot(Signature):
    """A place where a seed can live: from the input of ``start`` to the output of ``end``.

    ``source`` tells what the seed reads: the host's activation at ``end``, or the input of
    ``start``.
    """

    id: str
    source: Literal["output", "span"]
    start: str
    end: str


@dataclass(frozen=True)
class SlotMap:
    """The slots of a host by id, and the reason for every module that carries none."""

    slots: dict[str, Slot]
    left_out: dict[str, str]


@dataclass
class _Call:
    """What one module was seen doing in the traced forward pass."""

    order: int
    count: int = 0
    inputs: Tensor | None = None
    output: Tensor | None = None


@dataclass
class _Trace:
    calls: dict[str, _Call] = field(default_factory=dict)


def find_slots(model: nn.Module, forward: Callable[[], object]) -> SlotMap:
    """Trace ``forward`` (which must run ``model`` once) and list the slots of the host.

    The host is left exactly as it was: buffers, random state and module state included.

    Raises:
        SlotError: no module of the host can carry a slot, or a lazy module has no shape yet.
    """
    names = _names(model)
    candidates = {name: module for module, (name, *_) in names.items() if _kind(module)}
    _refuse_lazy(model)
    with HostGuard(model), torch.no_grad(), uncompiled(), _tracing(candidates) as trace:
        forward()
    shared = {paths[0] for paths in names.values() if len(paths) > 1}
    left_out, usable = {}, []
    for name, module in candidates.items():
        reason = _obstacle(trace.calls.get(name), module, name in shared)
        if reason is None:
            usable.append(name)
        else:
            left_out[name] = reason
    for module, (name, *_) in names.items():
        if name and name not in candidates and _is_leaf(module):
            left_out[name] = f"no slots on {type(module).__name__}"
    if not usable:
        raise SlotError(_nothing_usable(left_out))
    usable.sort(key=lambda name: trace.calls[name].order)
    slots = _output_slots(usable, candidates, trace) + _span_slots(usable, candidates, trace)
    return SlotMap({slot.id: slot for slot in slots}, left_out)


def _names(model: nn.Module) -> dict[nn.Module, list[str]]:
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if "parametrizations" not in name.split("."):
            names.setdefault(module, []).append(name)
    return names


def _kind(module: nn.Module) -> type[nn.Module] | None:
    """The slot type of ``module``, seen through weight and spectral norm; None for all others."""
    kind = parametrize.type_before_parametrizations(module)
    return kind if kind in FEATURE_AXES else None


def _is_leaf(module: nn.Module) -> bool:
    return set(module._modules) <= {"parametrizations"}


def _refuse_lazy(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise SlotError(f"{name} has no shape yet: run one batch through the model first")


@contextmanager
def _tracing(modules: dict[str, nn.Module]) -> Iterator[_Trace]:
    trace = _Trace()

    def watch(name: str) -> Callable[..., None]:
        def record(_: nn.Module, args: tuple[Any, ...], output: object) -> None:
            call = trace.calls.setdefault(name, _Call(order=len(trace.calls)))
            call.count += 1
            call.inputs = args[0] if args and isinstance(args[0], Tensor) else None
            call.output = output if isinstance(output, Tensor) else None

        return record

    handles = [module.register_forward_hook(watch(name)) for name, module in modules.items()]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def _obstacle(call: _Call | None, module: nn.Module, shared: bool) -> str | None:
    if shared:
        return "shared: the module stands under several names"
    if call is None:
        return "not called in the forward pass"
    if call.count > 1:
        return f"called {call.count} times in one forward pass"
    if call.inputs is None or call.output is None:
        return "its first input and its output must be tensors"
    if call.output.dim() < 2:
        return f"output of shape {tuple(call.output.shape)} has no batch dimension"
    if not call.output.is_floating_point():
        return f"output of dtype {call.output.dtype} is not floating point"
    if call.output.dtype not in BLENDABLE:
        wanted = ", ".join(str(dtype) for dtype in BLENDABLE)
        return f"output of dtype {call.output.dtype}, wanted one of {wanted}"
    return None


def _nothing_usable(left_out: dict[str, str]) -> str:
    seen = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "no modules"
    kinds = ", ".join(kind.__name__ for kind in FEATURE_AXES)
    return f"the host has no slot ({seen}); wanted at least one of {kinds}, called once a pass"


def _axis(module: nn.Module, dimensions: int) -> int:
    """The feature axis of ``module`` in a shape without the batch dimension."""
    kind = _kind(module)
    if kind is None:
        raise SlotError(f"no slots on {type(module).__name__}")
    axis = FEATURE_AXES[kind]
    return (axis if axis >= 0 else dimensions + axis) - 1


def _tensors(name: str, trace: _Trace) -> tuple[Tensor, Tensor]:
    call = trace.calls[name]
    if call.inputs is None or call.output is None:
        raise SlotError(f"module {name!r}: its first input and its output must be tensors")
    return call.inputs, call.output


def _output_slots(names: list[str], modules: dict[str, nn.Module], trace: _Trace) -> list[Slot]:
    slots = []
    for name in names:
        _, output = _tensors(name, trace)
        shape, axis = tuple(output.shape[1:]), _axis(modules[name], output.dim())
        slots.append(
            Slot(
                id=name,
                source="output",
                start=name,
                end=name,
                in_shape=shape,
                out_shape=shape,
                in_axis=axis,
                out_axis=axis,
                dtype=output.dtype,
                device=output.device,
            )
        )
    return slots


def _span_slots(names: list[str], modules: dict[str, nn.Module], trace: _Trace) -> list[Slot]:
    slots = []
    for first, start in enumerate(names):
        for end in names[first : first + MAX_SPAN]:
            inputs, output = _tensors(start, trace)[0], _tensors(end, trace)[1]
            if inputs.dim() != output.dim() or inputs.shape[0] != output.shape[0]:
                continue
            if not inputs.is_floating_point():
                continue
            slots.append(
                Slot(
                    id=f"{start}..{end}",
                    source="span",
                    start=start,
                    end=end,
                    in_shape=tuple(inputs.shape[1:]),
                    out_shape=tuple(output.shape[1:]),
                    in_axis=_axis(modules[start], inputs.dim()),
                    out_axis=_axis(modules[end], output.dim()),
                    dtype=output.dtype,
                    device=output.device,
                )
            )
    return slots
