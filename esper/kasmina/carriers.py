"""Modules that carry slots: what is to be seen of them in one forward pass.

Most are of a type whose feature axis is known (``slot_types``). The others are *blocks*, which a
model repeats, such as the layers of a transformer: a module with a forward of its own that stands
in an ``nn.ModuleList`` or ``nn.Sequential``, has slot modules inside and returns an activation of
the shape that it was given. Its features are where the slot modules inside it have theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from esper.kasmina.graft import host_of
from esper.kasmina.layout import Layout, LayoutError, layout_of
from esper.kasmina.slot_types import SlotType, slot_type
from esper.kasmina.trace import Call

BLENDABLE = (torch.float32, torch.float64, torch.bfloat16)
"""Activations that a graft can be blended into."""

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Carrier:
    """How a module that can carry slots lays out what it is given and what it gives.

    ``input`` is None where no span can start.
    """

    input: Layout | None
    output: Layout
    outputs: int
    dtype: torch.dtype
    device: torch.device


def carrier_of(
    module: nn.Module, kind: SlotType, call: Call | None, shared: bool, batches: set[int]
) -> Carrier:
    """That of a module of a known type.

    ``batches`` are the batch sizes of the host's sequence-first modules.

    Raises:
        LayoutError: it cannot carry a slot; the message is the reason.
    """
    call, output = _called_once(call, shared)
    return _carrier(
        module,
        call,
        output,
        _input_layout(module, kind, call.input, batches),
        layout_of(module, kind, output, batches),
    )


def block_of(
    module: nn.Module, call: Call | None, shared: bool, inside: Iterable[Layout]
) -> Carrier:
    """That of a block; ``inside`` are the outputs of the slot modules in it.

    Raises:
        LayoutError: it cannot carry a slot; the message is the reason.
    """
    call, output = _called_once(call, shared)
    given, shape = call.input, tuple(output.shape)
    if given is None or tuple(given.shape) != shape:
        got = "no tensor" if given is None else str(tuple(given.shape))
        raise LayoutError(
            f"a block given {got} that returns {shape}: blocks carry slots where the shape stays"
        )
    layouts = {layout for layout in inside if layout.full == shape}
    if len(layouts) != 1:
        count = "several places" if layouts else "no place"
        raise LayoutError(
            f"a block of shape {shape}, and modules inside it have the features of such an "
            f"activation in {count}: declare them with esper.register_slot_type("
            f"{type(host_of(module)).__name__}, feature_axis=...)"
        )
    (layout,) = layouts
    return _carrier(module, call, output, layout, layout)


def is_block(module: nn.Module, parent: nn.Module) -> bool:
    """Whether ``module``, a child of ``parent``, is a block as far as its place tells."""
    own = host_of(module)
    return (
        isinstance(parent, (nn.Sequential, nn.ModuleList))
        and bool(own._modules)
        and not isinstance(own, _CONTAINERS)
        and slot_type(own) is None
    )


def _called_once(call: Call | None, shared: bool) -> tuple[Call, Tensor]:
    """The call and its activation."""
    if shared:
        raise LayoutError("shared: the module stands under several names")
    if call is None:
        raise LayoutError("not called in the forward pass")
    if call.count > 1:
        raise LayoutError(f"called {call.count} times in one forward pass")
    if call.packed:
        raise LayoutError(
            "it is given a packed sequence, and seeds take padded tensors: pad its input and mask "
            "the loss"
        )
    if call.input is None or call.output is None:
        raise LayoutError(
            "its first input must be a tensor, its output one or a plain tuple that starts with one"
        )
    if call.input.is_nested or call.output.is_nested:
        raise LayoutError("it is given nested tensors, and seeds take plain ones")
    _require_blendable(call.output)
    return call, call.output


def _carrier(
    module: nn.Module, call: Call, output: Tensor, before: Layout | None, after: Layout
) -> Carrier:
    return Carrier(
        input=before,
        output=after,
        outputs=call.outputs,
        dtype=_weights_dtype(module, call, output),
        device=output.device,
    )


def _weights_dtype(module: nn.Module, call: Call, output: Tensor) -> torch.dtype:
    """That of a seed's parameters: under autocast, what the host's own are kept in."""
    if not call.autocast:
        return output.dtype
    own = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(own, torch.float32)


def _input_layout(
    module: nn.Module, kind: SlotType, x: Tensor | None, batches: set[int]
) -> Layout | None:
    if x is None or not x.is_floating_point():
        return None
    try:
        return layout_of(module, kind, x, batches)
    except LayoutError:
        return None


def _require_blendable(output: Tensor) -> None:
    if not output.is_floating_point():
        raise LayoutError(f"output of dtype {output.dtype} is not floating point")
    if output.dtype not in BLENDABLE:
        wanted = ", ".join(str(dtype) for dtype in BLENDABLE)
        raise LayoutError(f"output of dtype {output.dtype}, wanted one of {wanted}")
