"""Proof, on a real batch, that a seed keeps its slot's contract and leaves its host alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina import ops
from esper.kasmina.isolation import HostGuard
from esper.kasmina.seed import Seed
from esper.kasmina.shadow import LossFunction, shadow_loss

ALPHAS = (0.0, 0.5, 1.0)


def contract_violations(
    model: nn.Module, seed: Seed, loss_fn: LossFunction, batch: Any
) -> list[str]:
    """What is wrong with ``seed`` in its slot; empty when contract and isolation hold.

    The contract: the blended activation has the shape, dtype, device and strides of the host's.
    The isolation: for a fixed cotangent the gradient that reaches the host's activation is that
    cotangent bit for bit at alpha 0, 1/2 and 1, and no host parameter is reachable from the
    seed's loss in the autograd graph. The host is left exactly as it was.
    """
    with HostGuard(model), torch.enable_grad():
        h, x = _activations(model, seed, lambda: loss_fn(batch))
        delta = seed.body(x.detach())
        problems = [p for alpha in ALPHAS for p in _blend_problems(h, delta, alpha)]
        if not problems:
            loss = shadow_loss(model, seed, loss_fn, batch)
            problems = _reachability_problems(model, seed, loss)
    return list(dict.fromkeys(problems))


def _activations(
    model: nn.Module, seed: Seed, forward: Callable[[], object]
) -> tuple[Tensor, Tensor]:
    seen: dict[str, Tensor] = {}

    def end(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        seen["h"] = output.detach()

    def start(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen["x"] = args[0].detach()

    handles = [
        model.get_submodule(seed.slot.end).register_forward_hook(end),
        model.get_submodule(seed.slot.start).register_forward_pre_hook(start),
    ]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return seen["h"], seen["x"] if seed.slot.source == "span" else seen["h"]


def _blend_problems(h: Tensor, delta: Tensor, alpha: float) -> list[str]:
    if delta.shape != h.shape:
        return [f"the seed gives shape {tuple(delta.shape)}, the slot wants {tuple(h.shape)}"]
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


def _reachability_problems(model: nn.Module, seed: Seed, loss: Tensor) -> list[str]:
    own = {id(parameter) for parameter in seed.body.parameters()}
    names = {id(p): name for name, p in model.named_parameters() if id(p) not in own}
    reached = sorted(names[id(leaf)] for leaf in reachable_leaves(loss) if id(leaf) in names)
    return [f"host parameter {name} is reachable from the seed's loss" for name in reached]


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
