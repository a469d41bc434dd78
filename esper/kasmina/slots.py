"""Finding the slots of a host: on a module's output, and on spans between two modules.

A host is traced once with a real batch. Only modules that are called exactly once in a forward
pass, under one name, can carry a slot; every other module is listed with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from esper.kasmina.errors import SlotError
from esper.kasmina.graft import host_of
from esper.kasmina.host import own_module
from esper.kasmina.isolation import HostGuard, uncompiled
from esper.kasmina.layout import Layout, LayoutError, layout_of, sequence_first
from esper.kasmina.signature import Slot
from esper.kasmina.slot_types import SlotType, known_types, slot_type
from esper.kasmina.trace import Call, tracing

BLENDABLE = (torch.float32, torch.float64, torch.bfloat16)
"""Activations that a graft can be blended into."""

MAX_SPAN = 3
"""A span reaches over at most so many slot modules."""


@dataclass(frozen=True)
class SlotMap:
    """The slots of a host by id, and the reason for every module that carries none."""

    slots: dict[str, Slot]
    left_out: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.slots)} slots"]
        width = max(map(len, self.slots), default=0)
        for slot in self.slots.values():
            reads = f"{slot.in_shape} to " if slot.source == "span" else ""
            lines.append(f"  {slot.id:{width}}  {reads}{slot.out_shape}")
        lines += [f"  no slot on {name or 'the model'}: {r}" for name, r in self.left_out.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Carrier:
    """How a module that can carry slots lays out what it is given and what it gives.

    ``input`` is None where no span can start.
    """

    input: Layout | None
    output: Layout
    outputs: int
    dtype: torch.dtype
    device: torch.device


def slots(model: nn.Module, batch: Any) -> SlotMap:
    """The slots of ``model``, and the reason for every module that carries none.

    Args:
        model: the host; it is left exactly as it was.
        batch: the input of the model, a sequence that starts with it, or a function without
            arguments that runs ``model`` once.

    Raises:
        SlotError: no module of the host can carry a slot, or a lazy module has no shape yet.
        KasminaError: the model is trained on several devices or in several processes at once.
    """
    host = own_module(model)
    if callable(batch):
        return find_slots(host, batch)
    given = batch[0] if isinstance(batch, (tuple, list)) else batch
    return find_slots(host, lambda: model(given))


def find_slots(model: nn.Module, forward: Callable[[], object]) -> SlotMap:
    """Trace ``forward`` (which must run ``model`` once) and list the slots of the host.

    The host is left exactly as it was: buffers, random state and module state included.

    Raises:
        SlotError: no module of the host can carry a slot, or a lazy module has no shape yet.
    """
    names: dict[nn.Module, list[str]] = {}
    _name(model, "", names)
    candidates = {paths[0]: module for module, paths in names.items() if _kind(module)}
    _refuse_lazy(model)
    with HostGuard(model), torch.no_grad(), uncompiled(), tracing(candidates) as calls:
        forward()
    shared = {paths[0] for paths in names.values() if len(paths) > 1}
    carriers, left_out = _carriers(candidates, calls, shared)
    for module, (name, *_) in names.items():
        if name and name not in candidates and _is_leaf(module):
            left_out[name] = f"no slots on {type(module).__name__}"
    if not carriers:
        raise SlotError(_nothing_usable(left_out))
    found = _output_slots(carriers) + _span_slots(carriers)
    return SlotMap({slot.id: slot for slot in found}, left_out)


def _name(module: nn.Module, path: str, names: dict[nn.Module, list[str]]) -> None:
    """Collect every path of every module below ``module``, parents first.

    What has grown is left out: a host has the same slots before and after, and a new seed stacks on
    the old ones.
    """
    names.setdefault(module, []).append(path)
    for step, child in host_of(module)._modules.items():
        if child is not None and step != "parametrizations":
            _name(child, f"{path}.{step}" if path else step, names)


def _kind(module: nn.Module) -> SlotType | None:
    return slot_type(host_of(module))


def _is_leaf(module: nn.Module) -> bool:
    return set(host_of(module)._modules) <= {"parametrizations"}


def _refuse_lazy(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise SlotError(f"{name} has no shape yet: run one batch through the model first")


def _nothing_usable(left_out: dict[str, str]) -> str:
    reasons = (f"{name or 'the model'}: {reason}" for name, reason in left_out.items())
    seen = "; ".join(reasons) or "no modules"
    return (
        f"the host has no slot ({seen}); wanted at least one of {known_types()}, called once a pass"
    )


def _carriers(
    candidates: dict[str, nn.Module], calls: dict[str, Call], shared: set[str]
) -> tuple[dict[str, _Carrier], dict[str, str]]:
    """The candidates that can carry slots, in order of the forward pass, and why others cannot."""
    batches = {
        call.input.shape[1]
        for name, call in calls.items()
        if sequence_first(candidates[name]) and call.input is not None and call.input.dim() > 2
    }
    carriers: dict[str, _Carrier] = {}
    left_out: dict[str, str] = {}
    for name, module in candidates.items():
        try:
            if not name:
                raise LayoutError("it is the model itself: put it into an nn.Sequential")
            carriers[name] = _carrier(module, calls.get(name), name in shared, batches)
        except LayoutError as error:
            left_out[name] = str(error)
    return dict(sorted(carriers.items(), key=lambda entry: calls[entry[0]].order)), left_out


def _carrier(module: nn.Module, call: Call | None, shared: bool, batches: set[int]) -> _Carrier:
    """Raises ``LayoutError`` with the reason where ``module`` cannot carry a slot."""
    kind = _kind(module)
    if shared:
        raise LayoutError("shared: the module stands under several names")
    if call is None or kind is None:
        raise LayoutError("not called in the forward pass")
    if call.count > 1:
        raise LayoutError(f"called {call.count} times in one forward pass")
    if call.input is None or call.output is None:
        raise LayoutError(
            "its first input must be a tensor, its output one or a tuple that starts with one"
        )
    if call.input.is_nested or call.output.is_nested:
        raise LayoutError("it is given nested tensors, and seeds take plain ones")
    _require_blendable(call.output)
    return _Carrier(
        input=_input_layout(module, kind, call.input, batches),
        output=layout_of(module, kind, call.output, batches),
        outputs=call.outputs,
        dtype=_weights_dtype(module, call, call.output),
        device=call.output.device,
    )


def _weights_dtype(module: nn.Module, call: Call, output: Tensor) -> torch.dtype:
    """That of a seed's parameters: under autocast, what the host's own are kept in."""
    if not call.autocast:
        return output.dtype
    own = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(own, torch.float32)


def _input_layout(module: nn.Module, kind: SlotType, x: Tensor, batches: set[int]) -> Layout | None:
    try:
        return layout_of(module, kind, x, batches) if x.is_floating_point() else None
    except LayoutError:
        return None


def _require_blendable(output: Tensor) -> None:
    if not output.is_floating_point():
        raise LayoutError(f"output of dtype {output.dtype} is not floating point")
    if output.dtype not in BLENDABLE:
        wanted = ", ".join(str(dtype) for dtype in BLENDABLE)
        raise LayoutError(f"output of dtype {output.dtype}, wanted one of {wanted}")


def _output_slots(carriers: dict[str, _Carrier]) -> list[Slot]:
    return [_slot(name, name, carrier.output, carrier) for name, carrier in carriers.items()]


def _span_slots(carriers: dict[str, _Carrier]) -> list[Slot]:
    names = list(carriers)
    return [
        _slot(start, end, entry, carriers[end], span=True)
        for place, start in enumerate(names)
        for end in names[place : place + MAX_SPAN]
        if (entry := carriers[start].input) and entry.matches(carriers[end].output)
    ]


def _slot(start: str, end: str, entry: Layout, carrier: _Carrier, *, span: bool = False) -> Slot:
    return Slot(
        id=f"{start}..{end}" if span else end,
        source="span" if span else "output",
        start=start,
        end=end,
        in_shape=entry.shape,
        in_axis=entry.axis,
        out_shape=carrier.output.shape,
        out_axis=carrier.output.axis,
        dtype=carrier.dtype,
        device=carrier.device,
        batch_axis=carrier.output.batch_axis,
        outputs=carrier.outputs,
    )
