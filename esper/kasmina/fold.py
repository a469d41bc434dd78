"""Folding: a fossil becomes part of the weights of the module that it stands on.

A seed that is affine at each position, ``B(x) = M x + c``, and a host module that is affine in its
weights compose to one module of the host's own type. On the output of ``h = W x + b`` that is
``(W + M W) x + (b + M b + c)``; across a single Linear ``(W + M) x + (b + c)``. The composition is
exact in real numbers; in floating point it moves the output by a few roundings, which is measured.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.activation import activation
from esper.kasmina.digest import model_digest
from esper.kasmina.errors import KasminaError
from esper.kasmina.graft import GraftedSeed, GraftPoint
from esper.kasmina.isolation import HostGuard, uncompiled
from esper.kasmina.seed import Seed, evaluating
from esper.kasmina.signature import Slot

TOLERANCE = 1e-4
"""A fold that moves the output by more than this share of its largest value is taken back."""

_Target = nn.Linear | nn.Conv1d | nn.Conv2d
_DTYPES = (torch.float32, torch.float64)
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class FoldError(KasminaError):
    """A fossil that cannot become part of its module's weights; the host is as it was."""


@dataclass(frozen=True)
class Folding:
    """What folding did: to which module, its digests, and how far the slot's output moved.

    ``difference`` is the largest absolute difference on one held-out batch, ``largest`` the
    largest absolute value there before.
    """

    module: str
    before: str
    after: str
    difference: float
    largest: float


@dataclass(frozen=True)
class Affine:
    """``x -> matrix x + offset``: ``[out, in]`` and ``[out]``, float64."""

    matrix: Tensor
    offset: Tensor


@torch.no_grad()
def affine_map(body: nn.Module, slot: Slot) -> Affine:
    """The map of ``body``, which must be affine at each position: what it makes of zero and of
    the unit vectors, at a single position, in float64."""
    width = slot.in_shape[slot.in_axis]
    probes = torch.zeros(width + 1, width, dtype=torch.float64, device=slot.device)
    probes[1:].fill_diagonal_(1.0)
    single = [1] * len(slot.in_shape)
    single[slot.in_axis] = width
    exact = copy.deepcopy(body).to(torch.float64).eval()
    values = exact(probes.reshape(width + 1, *single)).flatten(1)
    return Affine((values[1:] - values[0]).T.contiguous(), values[0])


def fold_in(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    seed: Seed,
    forward: Callable[[], object],
) -> Folding:
    """Write the fossil ``seed``, affine at each position, into its module's weights.

    The seed still stands in the forward path: taking it out is the caller's.
    ``forward`` runs ``model`` once on a held-out batch; the host is measured in evaluation mode
    and keeps everything but those weights.

    Raises:
        FoldError: slot and seed do not compose to one module of the host's, or something else
            reads its weights.
    """
    point, graft, target = _places(model, seed)
    _require_free(model, optimizer, seed, target)
    composed = _composed(affine_map(graft.body, seed.slot), seed.slot, target)
    own = [(p, p.detach().clone()) for p in (target.weight, target.bias) if p is not None]
    before = model_digest(point.host)
    try:
        with HostGuard(model, freeze=False), evaluating(model), uncompiled():
            repeat = _call_of(point, forward)
            grown = repeat()
            _write(own, composed)
            with _taken_out(point, graft):
                difference = float((repeat() - grown).abs().max())
        largest = float(grown.abs().max())
        if not difference <= TOLERANCE * largest:
            raise FoldError(f"its output, up to {largest:.2g}, would move by {difference:.2g}")
    except BaseException:
        _write(own, [value for _, value in own])
        raise
    return Folding(seed.slot.end, before, model_digest(point.host), difference, largest)


def _places(model: nn.Module, seed: Seed) -> tuple[GraftPoint, GraftedSeed, _Target]:
    """The graft point, the seed in it, and the module whose weights are to take the seed in."""
    slot = seed.slot
    point = model.get_submodule(slot.end)
    grafts = list(point.seeds.children()) if isinstance(point, GraftPoint) else []
    graft = next((g for g in grafts if isinstance(g, GraftedSeed) and g.body is seed.body), None)
    if not isinstance(point, GraftPoint) or graft is None:
        raise FoldError(f"seed {seed.id} does not stand in the forward path at {slot.end}")
    if graft is not grafts[0]:
        raise FoldError("an older seed stands between it and the module")
    if slot.start != slot.end:
        raise FoldError("it spans several modules")
    target = _target(point.host, slot)
    _require_plain(point, own_hooks=1)
    _require_plain(point.host)
    _require_plain(target)
    return point, graft, target


@contextmanager
def _taken_out(point: GraftPoint, graft: GraftedSeed) -> Iterator[None]:
    members = dict(point.seeds._modules)
    del point.seeds._modules[graft.key]
    try:
        yield
    finally:
        point.seeds._modules.clear()
        point.seeds._modules.update(members)


def _target(host: nn.Module, slot: Slot) -> _Target:
    """The module at the end of ``host``; subclasses may compute something else."""
    kind, span = type(host), slot.source == "span"
    if isinstance(host, nn.Linear) and kind is nn.Linear:
        return host
    if isinstance(host, nn.MultiheadAttention) and kind is nn.MultiheadAttention and not span:
        return host.out_proj
    if isinstance(host, (nn.Conv1d, nn.Conv2d)) and kind in (nn.Conv1d, nn.Conv2d) and not span:
        if host.groups > 1:
            raise FoldError("its convolution keeps groups of channels apart")
        return host
    raise FoldError(f"{kind.__name__} and the seed are no single module of its type")


def _require_plain(module: nn.Module, own_hooks: int = 0) -> None:
    """Whoever looks at the module in passing would see something else."""
    if "forward" in vars(module):
        raise FoldError("the forward method of its module has been replaced")
    if sum(len(getattr(module, name)) for name in _HOOKS) > own_hooks:
        raise FoldError("a hook of the user's is on its module")


def _require_free(
    model: nn.Module, optimizer: torch.optim.Optimizer, seed: Seed, target: _Target
) -> None:
    """The weights are the module's alone, keep the seed's precision, and go on being trained."""
    parameters = dict(target.named_parameters(recurse=False))
    if "weight" not in parameters:
        raise FoldError("the module's weights are parametrized")
    storages = [tensor.untyped_storage().data_ptr() for tensor in _tensors(model)]
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in parameters.items():
        if storages.count(parameter.untyped_storage().data_ptr()) > 1:
            raise FoldError(f"its {name} is shared with another module")
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise FoldError(f"a hook of the user's is on its {name}")
        if parameter.dtype not in _DTYPES or parameter.dtype != seed.slot.dtype:
            raise FoldError(
                f"its {name} has dtype {parameter.dtype} and the slot {seed.slot.dtype}: rounding "
                "would lose what the seed has learnt"
            )
        if seed.trainable and not (parameter.requires_grad and parameter in trained):
            raise FoldError(f"its {name} is frozen, and the seed is trained")


def _tensors(model: nn.Module) -> list[Tensor]:
    """Every parameter and buffer of the model, once for each of its names."""
    parameters = [p for _, p in model.named_parameters(remove_duplicate=False)]
    return [*parameters, *(b for _, b in model.named_buffers(remove_duplicate=False))]


@torch.no_grad()
def _composed(affine: Affine, slot: Slot, target: _Target) -> list[Tensor]:
    """Weight and bias of the one module that does what the module and the seed did, float64."""
    matrix, offset = affine.matrix, affine.offset
    flat = target.weight.double().flatten(1)
    span = slot.source == "span"
    folded = [(flat + (matrix if span else matrix @ flat)).reshape(target.weight.shape)]
    if target.bias is not None:
        bias = target.bias.double()
        folded.append(bias + offset + (0.0 if span else matrix @ bias))
    elif bool(offset.any()):
        raise FoldError("its module has no bias to take up the seed's")
    if not all(bool(torch.isfinite(value).all()) for value in folded):
        raise FoldError("the folded weights are not finite")
    return folded


@torch.no_grad()
def _write(kept: list[tuple[Tensor, Tensor]], values: list[Tensor]) -> None:
    for (parameter, _), value in zip(kept, values, strict=True):
        parameter.copy_(value)


def _call_of(point: GraftPoint, forward: Callable[[], object]) -> Callable[[], Tensor]:
    """What ``forward`` calls the graft point with, to be called again: gives the activation."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))

    handle = point.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        forward()
    finally:
        handle.remove()
    if not seen:
        raise FoldError("its module is not called on a held-out batch")
    args, kwargs = seen[-1]

    def repeat() -> Tensor:
        value: Tensor = activation(point(*args, **kwargs))
        return value

    return repeat
