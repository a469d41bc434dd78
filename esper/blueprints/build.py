"""From a blueprint and a slot's signature to a module that can be trained.

Building draws from the generator that is handed in and from nothing else: the global random
state of torch is left as it was, so that a seed's birth is invisible to its host.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from esper.blueprints import ir, operations
from esper.blueprints.ir import Blueprint, BlueprintError
from esper.blueprints.shapes import Step, entry, plan
from esper.kasmina.residual import Activation, TwoLayers
from esper.kasmina.signature import Signature

_FUNCTIONS: dict[type[nn.Module], Activation] = {
    nn.ReLU: torch.relu,
    nn.GELU: functional.gelu,
    nn.SiLU: functional.silu,
    nn.Tanh: torch.tanh,
    nn.Sigmoid: torch.sigmoid,
}


def applies(blueprint: Blueprint, signature: Signature) -> str | None:
    """None when ``blueprint`` fits the slot, else the reason why it does not.

    An ``output`` blueprint fits where input and output are alike; whether a slot is one or a
    span is for the caller to match.
    """
    if not signature.dtype.is_floating_point:
        return f"the slot holds {signature.dtype}, and a seed computes in floating point"
    try:
        _plan(blueprint, signature)
    except BlueprintError as error:
        return str(error)
    return None


def parameter_count(blueprint: Blueprint, signature: Signature) -> int:
    """Number of parameters that a seed has here, frozen ones included; builds nothing.

    Raises ``BlueprintError`` when the blueprint does not fit.
    """
    return sum(step.parameters for step in _plan(blueprint, signature))


def build(blueprint: Blueprint, signature: Signature, generator: torch.Generator) -> Graft:
    """A fresh seed: maps ``[batch, *in_shape]`` to ``[batch, *out_shape]``.

    Its parameters depend on the blueprint, the signature and the state of ``generator`` alone.
    Unless the blueprint is a frozen one, its output is exactly zero until it has been trained.
    Raises ``BlueprintError`` when the blueprint does not fit.
    """
    reason = applies(blueprint, signature)
    if reason is not None:
        raise BlueprintError(f"blueprint {blueprint.name} does not fit this slot: {reason}")
    graft = Graft(blueprint, _plan(blueprint, signature), signature)
    graft.to_empty(device=signature.device)
    graft.reset(generator)
    return graft


class Graft(nn.Module):
    """The module of one seed: the blueprint's nodes in order, between two turns of the axes."""

    def __init__(self, blueprint: Blueprint, steps: tuple[Step, ...], signature: Signature) -> None:
        super().__init__()
        self.blueprint = blueprint
        width = entry(signature.in_shape, signature.in_axis)
        before = [width, *(step.value for step in steps)]
        self.nodes = nn.ModuleList(
            operations.make(step, before[ir.operands(step.node)[0]], signature.dtype)
            for step in steps
        )
        self._operands = tuple(ir.operands(step.node) for step in steps)
        self._chain = all(o == (i,) for i, o in enumerate(self._operands))
        self._in_axis = _turned(signature.in_axis, len(signature.in_shape))
        self._out_axis = _turned(signature.out_axis, len(signature.out_shape))
        features_last = self._in_axis is None and self._out_axis is None
        self._two_layers = self._chain and features_last and _is_two_layers(blueprint)

    def reset(self, generator: torch.Generator) -> None:
        """Draw all parameters anew from ``generator``, in the order of the nodes."""
        for node, module in zip(self.blueprint.nodes, self.nodes, strict=True):
            operations.initialise(node, module, generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[batch, *in_shape]`` to ``[batch, *out_shape]``, contiguous."""
        if self._in_axis is not None:
            x = x.movedim(self._in_axis, -1)
        if self._chain:
            for module in self.nodes:
                x = module(x)
        else:
            x = self._run(x)
        if self._out_axis is not None:
            x = x.movedim(-1, self._out_axis)
        return x.contiguous()

    def two_layers(self) -> TwoLayers | None:
        """The two layers that this is, features last; None where it is, or does, anything else."""
        if not self._two_layers:
            return None
        nodes = (*self._modules["nodes"]._modules.values(),)  # type: ignore[union-attr]
        if len(nodes) == 1 and type(nodes[0]) is operations.LowRank:
            down, up, activation = nodes[0].down, nodes[0].up, None
        elif len(nodes) == 3 and type(nodes[1]) in _FUNCTIONS:
            down, up, activation = nodes[0], nodes[2], _FUNCTIONS[type(nodes[1])]
        else:
            return None
        if type(down) is not nn.Linear or type(up) is not nn.Linear:
            return None
        for module in (self, *nodes, down, up):
            if (
                module._forward_pre_hooks
                or module._forward_hooks
                or module._backward_pre_hooks
                or module._backward_hooks
            ):
                return None
        return TwoLayers(down.weight, down.bias, up.weight, up.bias, activation)

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        values = [x]
        for module, operands in zip(self.nodes, self._operands, strict=True):
            values.append(module(*(values[i] for i in operands)))
        return values[-1]

    def extra_repr(self) -> str:
        return f"blueprint={self.blueprint.name!r}"


def _plan(blueprint: Blueprint, signature: Signature) -> tuple[Step, ...]:
    return plan(
        blueprint, signature.in_shape, signature.in_axis, signature.out_shape, signature.out_axis
    )


def _is_two_layers(blueprint: Blueprint) -> bool:
    match blueprint.nodes:
        case [ir.LowRank()] | [ir.Linear(), ir.Activation(), ir.Linear()]:
            return True
        case _:
            return False


def _turned(axis: int, dimensions: int) -> int | None:
    """The batched feature axis where it must be moved to the end; None where it is there."""
    return None if axis == dimensions - 1 else axis + 1
