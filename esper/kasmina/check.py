"""Proof, on a real batch, that a seed keeps its slot's contract and leaves its host alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina import ops
from esper.kasmina.activation import activation, turned
from esper.kasmina.errors import SlotError
from esper.kasmina.isolation import HostGuard
from esper.kasmina.seed import Seed, evaluating, switched_on
from esper.kasmina.shadow import LossFunction, scalar_loss

ALPHAS = (0.0, 0.5, 1.0)

_NESTED = (
    "the slot holds a nested tensor: make the nn.TransformerEncoder with enable_nested_tensor=False"
)


def contract_violations(
    model: nn.Module, seed: Seed, loss_fn: LossFunction, batch: Any
) -> list[str]:
    """What is wrong with ``seed`` in its slot; empty when contract and isolation hold.

    All parts of :func:`contract_check` in one go, up to the first that finds anything.
    """
    return next(filter(None, contract_check(model, seed, loss_fn, batch)), [])


def contract_check(
    model: nn.Module, seed: Seed, loss_fn: LossFunction, batch: Any
) -> Iterator[list[str]]:
    """What each part of the check finds wrong with ``seed`` in its slot.

    The contract: the blended activation has the shape, dtype, device and strides of the host's.
    The isolation: for a fixed cotangent the gradient that reaches the host's activation is that
    cotangent bit for bit at alpha 0, 1/2 and 1; no host parameter is reachable in the autograd
    graph from what the seed adds, nor, with the host frozen, from the seed's loss; the seed can
    take its gradient, and fits in evaluation mode too.

    No part takes more than one pass of the host, and each leaves it exactly as it was: the host
    may train on between two of them. A part relies on those before it having found nothing.
    """
    try:
        names = {p: name for name, p in model.named_parameters()}
        with HostGuard(model), torch.enable_grad(), _switched_on(model, seed, names) as probe:
            loss = probe.loss(loss_fn, batch)
            h, added = probe.activations[0], probe.added[0]
            problems = _reachability_problems(names, added, "what the seed adds")
            problems = problems or _reachability_problems(names, loss, "the seed's loss")
            delta = added.detach()
            del probe, loss, added
        yield problems
        yield _blend_problems(h, delta)
        del h, delta
    except _MisfitError as misfit:
        yield [str(misfit)]
        return
    with HostGuard(model), torch.enable_grad(), switched_on(model, seed):
        problems = _gradient_problems(seed, scalar_loss(loss_fn(batch)))
    yield problems
    yield _evaluation_problems(model, seed, loss_fn, batch)


def _evaluation_problems(
    model: nn.Module, seed: Seed, loss_fn: LossFunction, batch: Any
) -> list[str]:
    """What is wrong in evaluation mode, in which some hosts compute in another way.

    A stock transformer encoder with a padding mask, for one, hands on nested tensors.
    """
    try:
        with (
            HostGuard(model, freeze=False),
            evaluating(model, seed.body),
            _switched_on(model, seed) as probe,
        ):
            probe.loss(loss_fn, batch)
    except _MisfitError as misfit:
        return [f"in evaluation mode {misfit}"]
    return []


class _MisfitError(Exception):
    """A seed that cannot be switched on; the message says why."""


class _Probe(nn.Module):
    """A seed's body that keeps what it adds, once it fits, and the activation it adds that to.

    While it runs, the ``host`` parameters require gradients, so that the graph of what it adds
    shows those that it computes with.
    """

    def __init__(self, seed: Seed, host: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.activations: list[Tensor] = []
        self.added: list[Tensor] = []
        self._seed = seed
        self._host = [p for p in host if p.is_leaf and p.is_floating_point()]

    def loss(self, loss_fn: LossFunction, batch: Any) -> Tensor:
        """That of one pass; raises ``_MisfitError`` unless it reaches the slot once."""
        loss = scalar_loss(loss_fn(batch))
        if len(self.added) != 1:
            raise _MisfitError(_wrong_count(len(self.added)))
        return loss

    def watch(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        """A hook on the module whose activation the seed changes."""
        self.activations.append(activation(output).detach())

    def forward(self, x: Tensor) -> Tensor:
        """What the seed adds; raises ``_MisfitError`` where it cannot be added."""
        h = self.activations[-1]
        if h.is_nested:
            raise _MisfitError(_NESTED)
        frozen = [p for p in self._host if not p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            delta = _addition(self._seed, x)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        placed = turned(delta, self._seed.slot.batch_axis) if delta.dim() > 1 else delta
        if placed.shape != h.shape:
            got, wanted = tuple(placed.shape), tuple(h.shape)
            raise _MisfitError(f"the seed gives shape {got}, the slot wants {wanted}")
        self.added.append(placed)
        return delta


@contextmanager
def _switched_on(
    model: nn.Module, seed: Seed, shown: Iterable[nn.Parameter] = ()
) -> Iterator[_Probe]:
    """Let ``model`` compute with ``seed`` at alpha 1, watched; of its parameters those ``shown``
    can be seen in the graph of what the seed adds."""
    probe = _Probe(seed, shown)
    handle = model.get_submodule(seed.slot.end).register_forward_hook(probe.watch)
    try:
        with switched_on(model, replace(seed, body=probe)):
            yield probe
    finally:
        handle.remove()


def _wrong_count(calls: int) -> str:
    if calls == 0:
        return "loss_fn did not reach the slot"
    return f"loss_fn reached the slot {calls} times, wanted once a pass"


def _addition(seed: Seed, x: Tensor) -> Tensor:
    """The body's output on ``x``, computed where the slot stands: autocast applies as it will."""
    try:
        delta: object = seed.body(x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise _MisfitError(f"the seed cannot run on its slot's activation: {error}") from error
    if not isinstance(delta, Tensor):
        raise _MisfitError(f"the seed gives {type(delta).__name__}, the slot wants a tensor")
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
    return list(dict.fromkeys(problems))


def _reachability_problems(names: Mapping[Any, str], value: Tensor, what: str) -> list[str]:
    reached = sorted(names[leaf] for leaf in reachable_leaves(value) if leaf in names)
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
