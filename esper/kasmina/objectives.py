"""Local objectives: what seeds learn from one plain pass of their host, run once for all of them.

The shadow objective runs the host with the seed switched on. A local one does not: the pass is the
host's own, and a body is regressed on a target made of what that pass had at the seed's slot. With
``x`` what the body ``B`` reads, ``h`` the slot's activation and ``g`` the gradient of the loss with
respect to it, all of them constants:

- ``reconstruction``: in a span ``B(x)`` is regressed on ``h``, what the layers of the span make of
  their input (hints, Romero et al. 2015, arXiv:1412.6550). In an output slot, where ``B`` reads
  ``h`` itself and the host adds what it gives to ``h``, that would ask for nothing: there
  ``h + n + B(h + n)`` is regressed on ``h`` with Gaussian noise ``n`` of ``NOISE`` standard
  deviations of each feature (Vincent et al. 2008; as a residual, Alain and Bengio 2014,
  arXiv:1211.4246).
- ``negative_gradient``: ``B(x)`` is regressed on ``-c g``, the direction in which the activation of
  each example should move (functional gradient boosting, Friedman 2001; as a layer's wish for
  growth in GradMax, Evci et al. 2022, arXiv:2201.05125, and TINY, Verbockhaven et al. 2024,
  arXiv:2405.19816). ``c`` is such that the target's root mean square is ``STEP`` of that of ``h``:
  a step relative to the layer, as LARS takes it (You et al. 2017, arXiv:1708.03888), because the
  scale of ``g`` is that of the loss and of the batch and not of the layer.
- ``next_layer``: with ``f`` the modules up to the next slot, ``f(h + B(x))`` is regressed on
  ``f(h) - c g'``, the next activation moved by the same kind of step down its own gradient ``g'``
  (target propagation; Lee et al. 2015, arXiv:1412.7525). ``f`` draws what it drew in the pass.

Each loss is the mean squared error as a fraction of the target's mean square (of that of the wanted
change, for ``next_layer``): 1 for a body that gives nothing, 0 for one that gives the target,
whatever the units of host and loss are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.activation import turned
from esper.kasmina.capture import Captured, capturing
from esper.kasmina.errors import ObjectiveError
from esper.kasmina.isolation import HostGuard, seed_everything, uncompiled
from esper.kasmina.joint_optimizer import JointOptimizer
from esper.kasmina.random_state import RandomState
from esper.kasmina.seed import Seed, give_gradients
from esper.kasmina.shadow import SEED_FAULTS, LossFunction, scalar_loss
from esper.kasmina.signature import Slot

STEP = 0.25
"""Root mean square of the change that is asked for, as a fraction of the activation's."""

NOISE = 0.25
"""Standard deviation of the noise of a reconstruction, as a fraction of each feature's."""


def local_step(
    model: nn.Module,
    seeds: Sequence[Seed],
    loss_fn: LossFunction,
    batch: Any,
    random_seed: int,
    optimizer: JointOptimizer,
) -> list[float | Exception]:
    """One step of each seed's optimizer on its local objective; its loss, or what went wrong.

    ``optimizer`` is that of all ``seeds``. The host is run once, as it is, and keeps its bits. Pass
    and bodies draw from generators seeded with ``random_seed``, each body anew, so that what a seed
    draws depends on no other.
    """
    found: list[float | Exception] = []
    with HostGuard(model), torch.enable_grad():
        at = _plain_pass(model, seeds, loss_fn, batch, random_seed)
        for seed in seeds:
            seed_everything(random_seed)
            try:
                found.append(_differentiate(seed, _loss(model, seed, at)))
            except (*SEED_FAULTS, ObjectiveError) as error:
                found.append(error)
        optimizer.step()
    for seed, result in zip(seeds, found, strict=True):
        seed.shadow_steps += isinstance(result, float)
    return found


def _differentiate(seed: Seed, loss: Tensor) -> float:
    """Leave the gradients of ``loss`` in the seed's parameters; its value."""
    if seed.trainable and seed.optimizer is not None:
        gradients = torch.autograd.grad(loss, seed.trainable, allow_unused=True)
        give_gradients(seed.trainable, gradients)
    return float(loss.detach())


@dataclass
class _Place:
    """What the pass had at a slot, and how it ran there: under which autocast, and, where somebody
    wants to go on from there, from which state of the generators."""

    captured: Captured
    autocast: torch.autocast
    random: RandomState | None

    @property
    def h(self) -> Tensor:
        """The activation, in float32 at least."""
        return _wide(self.captured.h)

    def descent(self) -> Tensor:
        """A step down the gradient, ``STEP`` times as long as the activation."""
        gradient = self.captured.gradient
        if gradient is None:
            raise ObjectiveError(f"the loss does not depend on slot {self.captured.slot.id!r}")
        wide = _wide(gradient)
        length = wide.square().mean().sqrt()
        unit = wide / torch.where(length > 0, length, 1.0)
        return -STEP * self.h.square().mean().sqrt() * unit


def _plain_pass(
    model: nn.Module, seeds: Sequence[Seed], loss_fn: LossFunction, batch: Any, random_seed: int
) -> Mapping[str, _Place]:
    slots: list[Slot] = [seed.slot for seed in seeds]
    slots += [seed.onward.end for seed in seeds if seed.onward is not None]
    started = {seed.slot.id for seed in seeds if seed.onward is not None}
    downhill = any(seed.objective != "reconstruction" for seed in seeds)
    at: dict[str, _Place] = {}

    def visit(captured: Captured) -> None:
        device, slot = captured.h.device.type, captured.slot.id
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        random = RandomState() if slot in started else None
        at[slot] = _Place(captured, torch.autocast(device, dtype, enabled), random)

    with capturing(model, slots, visit, gradients=downhill) as capture:
        seed_everything(random_seed)
        loss = scalar_loss(loss_fn(batch))
        if downhill:
            capture.differentiate(loss)
    return at


def _loss(model: nn.Module, seed: Seed, at: Mapping[str, _Place]) -> Tensor:
    """The seed's loss; the graph behind it holds the seed alone."""
    place = at.get(seed.slot.id)
    if place is None:
        raise ObjectiveError(f"loss_fn did not reach slot {seed.slot.id!r}")
    match seed.objective:
        case "reconstruction" if seed.slot.source == "output":
            spread = place.h.std(
                _all_but(seed.slot.out_axis + 1, place.h), correction=0, keepdim=True
            )
            noise = NOISE * spread * torch.randn_like(place.h)
            return _missed(_added(seed, place, place.h + noise), -noise)
        case "reconstruction":
            return _missed(_added(seed, place, place.captured.x), place.h)
        case "negative_gradient":
            return _missed(_added(seed, place, place.captured.x), place.descent())
        case "next_layer":
            return _next_loss(model, seed, place, at)
        case _:
            raise ObjectiveError(f"{seed.objective!r} is no local objective")


def _next_loss(model: nn.Module, seed: Seed, place: _Place, at: Mapping[str, _Place]) -> Tensor:
    onward = seed.onward
    if onward is None or place.random is None or onward.end.id not in at:
        raise ObjectiveError(f"the layer after slot {seed.slot.id!r} is not known")
    after = at[onward.end.id]
    delta = _added(seed, place, place.captured.x).to(place.captured.h.dtype)
    place.random.restore()
    with place.autocast, uncompiled():
        moved = onward.run(model, turned(place.captured.h + delta, seed.slot.batch_axis))
    change = _wide(turned(moved, onward.end.batch_axis)) - after.h
    return _missed(change, after.descent())


def _added(seed: Seed, place: _Place, x: Tensor) -> Tensor:
    """What the body gives on ``x``, in float32 at least.

    Raises:
        ValueError: it is not of the activation's shape.
    """
    with place.autocast:
        return _wide(seed.added(x.to(place.captured.x.dtype), place.captured.h))


def _missed(got: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error as a fraction of the mean square of what is wanted, where that is
    anything at all."""
    size = wanted.square().mean()
    return (got - wanted).square().mean() / torch.where(size > 0, size, 1.0)


def _all_but(axis: int, x: Tensor) -> list[int]:
    return [other for other in range(x.dim()) if other != axis]


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
