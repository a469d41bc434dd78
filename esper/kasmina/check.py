"""Proof, on a real batch, that a seed keeps its slot's contract and leaves its host alone."""

from __future__ import annotations

from collections.abc import Callable
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
    with HostGuard(model, freeze=False), torch.enable_grad():
        h, delta = _activations(model, seed, lambda: loss_fn(batch))
        if isinstance(delta, str):
            return [delta]
        problems = [p for alpha in ALPHAS for p in _blend_problems(h, delta, alpha)]
        problems += _reachability_problems(model, delta, "what the seed adds")
    if not problems:
        with HostGuard(model), torch.enable_grad(), switched_on(model, seed):
            loss = scalar_loss(loss_fn(batch))
            problems = _reachability_problems(model, loss, "the seed's loss")
            problems += _gradient_problems(seed, loss)
        problems += _evaluation_problems(model, seed, lambda: loss_fn(batch))
    return list(dict.fromkeys(problems))


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
        added.append(_addition(seed, seen["x"] if seed.slot.source == "span" else seen["h"]))

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
    if len(added) == 1:
        return seen["h"], added[0]
    often = f"reached the slot {len(added)} times, wanted once a pass"
    return torch.empty(0), f"loss_fn {often if added else 'did not reach the slot'}"


def _addition(seed: Seed, x: Tensor) -> Tensor | str:
    """The body's output on ``x``, computed where the slot stands: autocast applies as it will."""
    try:
        delta: object = seed.body(turned(x, seed.slot.batch_axis))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return f"the seed cannot run on its slot's activation: {error}"
    if not isinstance(delta, Tensor):
        return f"the seed gives {type(delta).__name__}, the slot wants a tensor"
    return turned(delta, seed.slot.batch_axis) if delta.dim() > 1 else delta


def _blend_problems(h: Tensor, delta: Tensor, alpha: float) -> list[str]:
    if delta.shape != h.shape:
        return [_wrong_shape(h, delta)]
    host = h.clone().requires_grad_()
    level = torch.full((1,), alpha, device=h.device)
    out = ops.graft_blend(host, delta.to(h.dtype), level)
    problems = [
        f"{name} of the blend is {got}, the host's is {wanted}"
        for name, got, wanted in (
            ("dtype", out.dtype, h.dtype),
            ("device", out.device, h.device),
            ("stride", out.stride(), h.stride()),
        )
        if got != wanted
    ]
    cotangent = torch.linspace(-1.0, 1.0, h.numel(), dtype=h.dtype, device=h.device).view(h.shape)
    (gradient,) = torch.autograd.grad(out, host, cotangent, retain_graph=True)
    if not torch.equal(gradient, cotangent):
        problems.append(f"at alpha {alpha} the host's gradient is not the cotangent bit for bit")
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
        return ["in evaluation mode the slot holds a nested tensor"]
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
