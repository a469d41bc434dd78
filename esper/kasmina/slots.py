"""Finding the slots of a host: on a module's output, and on spans between two modules.

A host is traced once with a real batch. Only modules that are called exactly once in a forward
pass, under one name, can carry a slot (``carriers`` tells which); every other module is listed with
the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from esper.kasmina.carriers import Carrier, block_of, carrier_of, is_block
from esper.kasmina.errors import SlotError
from esper.kasmina.graft import host_of
from esper.kasmina.host import own_module
from esper.kasmina.isolation import HostGuard, uncompiled
from esper.kasmina.layout import Layout, LayoutError, sequence_first
from esper.kasmina.signature import Slot
from esper.kasmina.slot_map import SlotMap
from esper.kasmina.slot_types import SlotType, known_types, slot_type, why_no_slot
from esper.kasmina.trace import Call, tracing

MAX_SPAN = 3
"""A span reaches over at most so many slot modules, or so many blocks."""


def slots(model: nn.Module, batch: Any) -> SlotMap:
    """The slots of ``model``, and the reason for every module that carries none.

    Args:
        model: the host; it is left exactly as it was.
        batch: the input of the model, a sequence that starts with it, a mapping of its arguments by
            name, or a function without arguments that runs ``model`` once.

    Raises:
        SlotError: no module of the host can carry a slot, a lazy module has no shape yet, or an
            embedding changes its weights in each pass (``max_norm``).
        KasminaError: the model is trained on several devices or in several processes at once.
    """
    host = own_module(model)
    if callable(batch):
        return find_slots(host, batch)
    if isinstance(batch, Mapping):
        return find_slots(host, lambda: model(**batch))
    given = batch[0] if isinstance(batch, (tuple, list)) else batch
    return find_slots(host, lambda: model(given))


def find_slots(model: nn.Module, forward: Callable[[], object]) -> SlotMap:
    """Trace ``forward`` (which must run ``model`` once) and list the slots of the host.

    The host is left exactly as it was: buffers, random state and module state included.

    Raises:
        SlotError: no module of the host can carry a slot, a lazy module has no shape yet, or an
            embedding changes its weights in each pass (``max_norm``).
    """
    names: dict[nn.Module, list[str]] = {}
    blocks: set[nn.Module] = set()
    _name(model, "", names, blocks)
    candidates = {paths[0]: module for module, paths in names.items() if _kind(module)}
    around = {names[module][0]: module for module in names if module in blocks}
    _refuse_lazy(model)
    _refuse_own_changes(candidates)
    with HostGuard(model), torch.no_grad(), uncompiled(), tracing(candidates | around) as calls:
        forward()
    shared = {paths[0] for paths in names.values() if len(paths) > 1}
    carriers, left_out = _carriers(candidates, calls, shared)
    for module, (name, *_) in names.items():
        if name and name not in candidates and _is_leaf(module):
            left_out[name] = why_no_slot(host_of(module))
    if not carriers:
        raise SlotError(_nothing_usable(left_out))
    repeated = _block_carriers(around, carriers, calls, shared, left_out)
    found = _output_slots(_in_order(carriers | repeated, calls))
    found += _span_slots(carriers) + _span_slots(repeated)
    return SlotMap({slot.id: slot for slot in found}, left_out)


def _name(
    module: nn.Module, path: str, names: dict[nn.Module, list[str]], blocks: set[nn.Module]
) -> None:
    """Collect every path of every module below ``module``, parents first, and which are blocks.

    What has grown is left out: a host has the same slots before and after, and a new seed stacks on
    the old ones.
    """
    names.setdefault(module, []).append(path)
    parent = host_of(module)
    for step, child in parent._modules.items():
        if child is not None and step != "parametrizations":
            if is_block(child, parent):
                blocks.add(child)
            _name(child, f"{path}.{step}" if path else step, names, blocks)


def _kind(module: nn.Module) -> SlotType | None:
    return slot_type(host_of(module))


def _is_leaf(module: nn.Module) -> bool:
    return set(host_of(module)._modules) <= {"parametrizations"}


def _refuse_lazy(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise SlotError(f"{name} has no shape yet: run one batch through the model first")


def _refuse_own_changes(candidates: dict[str, nn.Module]) -> None:
    for name, module in candidates.items():
        own = host_of(module)
        if isinstance(own, (nn.Embedding, nn.EmbeddingBag)) and own.max_norm is not None:
            raise SlotError(
                f"{name} has max_norm, so it changes its weights in every forward pass, those that "
                "only measure included: make it without, and norm the weights after each step"
            )


def _nothing_usable(left_out: dict[str, str]) -> str:
    reasons = (f"{name or 'the model'}: {reason}" for name, reason in left_out.items())
    seen = "; ".join(reasons) or "no modules"
    return (
        f"the host has no slot ({seen}); wanted at least one of {known_types()}, called once a pass"
    )


def _carriers(
    candidates: dict[str, nn.Module], calls: dict[str, Call], shared: set[str]
) -> tuple[dict[str, Carrier], dict[str, str]]:
    """The candidates that can carry slots, in order of the forward pass, and why others cannot."""
    batches = {
        call.input.shape[1]
        for name, module in candidates.items()
        if (call := calls.get(name)) and sequence_first(module)
        if call.input is not None and call.input.dim() > 2
    }
    carriers: dict[str, Carrier] = {}
    left_out: dict[str, str] = {}
    for name, module in candidates.items():
        kind = _kind(module)
        try:
            if not name or kind is None:
                raise LayoutError("it is the model itself: put it into an nn.Sequential")
            carriers[name] = carrier_of(module, kind, calls.get(name), name in shared, batches)
        except LayoutError as error:
            left_out[name] = str(error)
    for name, reason in _tables(candidates, carriers).items():
        del carriers[name]
        left_out[name] = reason
    return _in_order(carriers, calls), left_out


def _tables(candidates: dict[str, nn.Module], carriers: dict[str, Carrier]) -> dict[str, str]:
    """Embeddings that are looked up once for all examples, such as those of positions."""
    tables = {
        name: carrier
        for name, carrier in carriers.items()
        if isinstance(host_of(candidates[name]), nn.Embedding)
    }
    batches = {carrier.output.batch for name, carrier in carriers.items() if name not in tables}
    return {
        name: f"activation of shape {carrier.output.full}, and the batch is of {min(batches)}: it "
        "is looked up once for all examples"
        for name, carrier in tables.items()
        if batches and carrier.output.batch not in batches
    }


def _block_carriers(
    blocks: dict[str, nn.Module],
    carriers: dict[str, Carrier],
    calls: dict[str, Call],
    shared: set[str],
    left_out: dict[str, str],
) -> dict[str, Carrier]:
    """The blocks that can carry slots, in order of the forward pass; ``left_out`` is added to."""
    found: dict[str, Carrier] = {}
    for name, module in blocks.items():
        inside = [c.output for part, c in carriers.items() if part.startswith(f"{name}.")]
        if inside:
            try:
                found[name] = block_of(module, calls.get(name), name in shared, inside)
            except LayoutError as error:
                left_out[name] = str(error)
    return _in_order(found, calls)


def _in_order(carriers: dict[str, Carrier], calls: dict[str, Call]) -> dict[str, Carrier]:
    return dict(sorted(carriers.items(), key=lambda entry: calls[entry[0]].order))


def _output_slots(carriers: dict[str, Carrier]) -> list[Slot]:
    return [_slot(name, name, carrier.output, carrier) for name, carrier in carriers.items()]


def _span_slots(carriers: dict[str, Carrier]) -> list[Slot]:
    names = list(carriers)
    return [
        _slot(start, end, entry, carriers[end], span=True)
        for place, start in enumerate(names)
        for end in names[place : place + MAX_SPAN]
        if (entry := carriers[start].input) and entry.matches(carriers[end].output)
    ]


def _slot(start: str, end: str, entry: Layout, carrier: Carrier, *, span: bool = False) -> Slot:
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
