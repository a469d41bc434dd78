"""Proof, on a real batch, that a seed keeps its slot's contract and leaves its host alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina import ops
from esper.kasmina.activation import activation, given, input_name, turned
from esper.kasmina.errors import SlotError
from esper.kasmina.graft import host_of
from esper.kasmina.isolation import HostGuard, uncompiled
from esper.kasmina.seed import Seed, evaluating, switched_on
from esper.kasmina.shadow import LossFunction, scalar_loss

ALPHAS = (0.0, 0.5, 1.0)

_NESTED = (
    "in evaluation mode the slot holds a nested tensor: make the nn.TransformerEncoder with "
    "enable_nested_tensor=False"
)


def contract_violations(
    model: nn.Module, seed: Seed, loss_fn: LossFunction, batch: Any
) -> list[str]:
    """What is wrong with ``seed`` in its slot; empty when contract and isolation hold.

    The contract: the blended activation has the shape, dtype, device and strides of the host's.
    The isolation: for a fixed cotangent the gradient that reaches the host's activation is that
    cotangent bit for bit at alpha 0, 1/2 and 1; no host parameter is reachable in the autograd
    graph from what the seed adds, nor, with the host frozen, from the seed's loss; the seed can
    take its gradient, and fits in evaluation mode too. The host is left exactly as it was.
    """
    with HostGuard(model), torch.enable_grad():
        problems = _training_problems(model, seed, loss_fn, batch)
    if not problems:
        problems = _evaluation_problems(model, seed, lambda: loss_fn(batch))
    return list(dict.fromkeys(problems))


class _MisfitError(Exception):
    """A seed that cannot be switched on; the message says why."""


class _Watched(nn.Module):
    """A seed's body that keeps what it adds, once it fits, and the activation it adds that to.

    While it runs, the parameters of the frozen host require gradients, so that the graph of what
    it adds shows those that it computes with.
    """

    def __init__(self, model: nn.Module, seed: Seed) -> None:
        super().__init__()
        self.activations: list[Tensor] = []
        self.added: list[Tensor] = []
        self._seed = seed
        self._host = [p for p in model.parameters() if p.is_leaf and p.is_floating_point()]

    def watch(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        """A hook on the module whose activation the seed changes."""
        self.activations.append(activation(output).detach())

    def forward(self, x: Tensor) -> Tensor:
        """What the seed adds; raises ``_MisfitError`` where it cannot be added."""
        frozen = [p for p in self._host if not p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            delta = _addition(self._seed, x)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        if isinstance(delta, str):
            raise _MisfitError(delta)
        placed = turned(delta, self._seed.slot.batch_axis) if delta.dim() > 1 else delta
        if placed.shape != self.activations[-1].shape:
            raise _MisfitError(_wrong_shape(self.activations[-1], placed))
        self.added.append(placed)
        return delta


def _training_problems(
    model: nn.Module, seed: Seed, loss_fn: LossFunction, batch: Any
) -> list[str]:
    """What is wrong in one pass of the frozen host with the seed switched on."""
    body = _Watched(model, seed)
    handle = model.get_submodule(seed.slot.end).register_forward_hook(body.watch)
    try:
        with switched_on(model, replace(seed, body=body)):
            loss = scalar_loss(loss_fn(batch))
            if len(body.added) != 1:
                return [_wrong_count(len(body.added))]
            (h,), (delta,) = body.activations, body.added
            problems = _blend_problems(h, delta)
            problems += _reachability_problems(model, delta, "what the seed adds")
            if not problems:
                problems = _reachability_problems(model, loss, "the seed's loss")
                problems += _gradient_problems(seed, loss)
            return problems
    except _MisfitError as misfit:
        return [str(misfit)]
    finally:
        handle.remove()


def _activations(
    model: nn.Module, seed: Seed, forward: Callable[[], object]
) -> tuple[Tensor, Tensor | str]:
    """The slot's activation, and what the seed adds to it or why it cannot."""
    seen: dict[str, Tensor] = {}
    added: list[Tensor | str] = []

    first_module = model.get_submodule(seed.slot.start)
    first = input_name(host_of(first_module))

    def end(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        seen["h"] = activation(output).detach()
        x = seen["x"] if seed.slot.source == "span" else seen["h"]
        added.append(_addition(seed, turned(x, seed.slot.batch_axis)))

    def start(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["x"] = given(args, kwargs, first).detach()

    handles = [
        model.get_submodule(seed.slot.end).register_forward_hook(end),
        first_module.register_forward_pre_hook(start, with_kwargs=True),
    ]
    try:
        with uncompiled():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    if len(added) != 1:
        return torch.empty(0), _wrong_count(len(added))
    delta = added[0]
    if isinstance(delta, Tensor) and delta.dim() > 1:
        delta = turned(delta, seed.slot.batch_axis)
    return seen["h"], delta


def _wrong_count(calls: int) -> str:
    if calls == 0:
        return "loss_fn did not reach the slot"
    return f"loss_fn reached the slot {calls} times, wanted once a pass"


def _addition(seed: Seed, x: Tensor) -> Tensor | str:
    """The body's output on ``x``, computed where the slot stands: autocast applies as it will."""
    try:
        delta: object = seed.body(x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return f"the seed cannot run on its slot's activation: {error}"
    if not isinstance(delta, Tensor):
        return f"the seed gives {type(delta).__name__}, the slot wants a tensor"
    return delta


def _blend_problems(h: Tensor, delta: Tensor) -> list[str]:
    """What is wrong with the activation that the host would go on with, and its gradient."""
    host = h.clone().requires_grad_()
    cotangent = torch.linspace(-1.0, 1.0, h.numel(), dtype=h.dtype, device=h.device).view(h.shape)
    problems = []
    for alpha in ALPHAS:
        out = ops.graft_blend(host, delta.to(h.dtype), torch.full((1,), alpha, device=h.device))
        problems += [
            f"{name} of the blend is {got}, the host's is {wanted}"
            for name, got, wanted in (
                ("dtype", out.dtype, h.dtype),
                ("device", out.device, h.device),
                ("stride", out.stride(), h.stride()),
            )
            if got != wanted
        ]
        (gradient,) = torch.autograd.grad(out, host, cotangent, retain_graph=True)
        if not torch.equal(gradient, cotangent):
            problems.append(f"at alpha {alpha} the host's gradient is not the cotangent to the bit")
    return problems


def _evaluation_problems(model: nn.Module, seed: Seed, forward: Callable[[], object]) -> list[str]:
    """What is wrong in evaluation mode, in which some hosts compute in another way.

    A stock transformer encoder with a padding mask, for one, hands on nested tensors.
    """
    with HostGuard(model, freeze=False), evaluating(model, seed.body):
        h, delta = _activations(model, seed, forward)
    if isinstance(delta, str):
        return [f"in evaluation mode: {delta}"]
    if h.is_nested:
        return [_NESTED]
    if delta.shape != h.shape:
        return [f"in evaluation mode {_wrong_shape(h, delta)}"]
    return []


def _wrong_shape(h: Tensor, delta: Tensor) -> str:
    return f"the seed gives shape {tuple(delta.shape)}, the slot wants {tuple(h.shape)}"


def _reachability_problems(model: nn.Module, value: Tensor, what: str) -> list[str]:
    names = {id(p): name for name, p in model.named_parameters()}
    reached = sorted(names[id(leaf)] for leaf in reachable_leaves(value) if id(leaf) in names)
    return [f"host parameter {name} is reachable from {what}" for name in reached]


def _gradient_problems(seed: Seed, loss: Tensor) -> list[str]:
    """Whether the seed can learn; a span across two checkpointed blocks, for one, cannot."""
    try:
        if seed.trainable:
            torch.autograd.grad(loss, seed.trainable, allow_unused=True)
    except (RuntimeError, SlotError) as error:
        return [f"no gradient can be taken for the seed: {_explained(error)}"]
    return []


def _explained(error: Exception) -> str:
    """What to do about the ways in which a host commonly keeps gradients from a seed."""
    text = str(error)
    if "use_reentrant" in text:
        return (
            "the host checkpoints activations reentrantly, and no gradient is taken through that: "
            "call torch.utils.checkpoint.checkpoint with use_reentrant=False"
        )
    if "does not require grad" in text:
        return (
            "none comes back here: the slot runs under torch.no_grad, or inside reentrant "
            "checkpointing (call torch.utils.checkpoint.checkpoint with use_reentrant=False)"
        )
    return text


def reachable_leaves(loss: Tensor) -> list[Tensor]:
    """The leaf tensors that a backward pass from ``loss`` would give a gradient to."""
    leaves: list[Tensor] = []
    seen: set[Any] = set()
    frontier = [loss.grad_fn]
    while frontier:
        node = frontier.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.append(variable)
        frontier.extend(following for following, _ in node.next_functions)
    return leaves
