"""The shadow objective: how a seed learns, and is measured, without touching its host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.errors import SEED_FAULTS as SEED_FAULTS
from esper.kasmina.errors import ObjectiveError
from esper.kasmina.isolation import HostGuard, seed_everything, uncompiled
from esper.kasmina.seed import Seed, evaluating, give_gradients, switched_on

LossFunction = Callable[[Any], Tensor]
"""The user's own objective: a batch in, a scalar loss out, the model called inside."""


def scalar_loss(loss: object) -> Tensor:
    """``loss`` itself when it is a scalar tensor.

    Raises:
        ObjectiveError: it is anything else.
    """
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point():
        return loss.reshape(())
    got = (
        f"a tensor of shape {tuple(loss.shape)}"
        if isinstance(loss, Tensor)
        else type(loss).__name__
    )
    raise ObjectiveError(
        f"loss_fn returned {got}, wanted a scalar floating-point tensor: return the mean loss of "
        "the batch and nothing else"
    )


def shadow_step(
    model: nn.Module, seed: Seed, loss_fn: LossFunction, batch: Any, random_seed: int
) -> float:
    """One step of the seed's own optimizer on its shadow objective; returns the loss.

    The host keeps its bits: parameters, gradients, buffers, module state and random state. The
    pass draws from generators seeded with ``random_seed``, so that it is a function of its step.
    """
    trainable = seed.trainable
    with HostGuard(model), torch.enable_grad(), switched_on(model, seed):
        seed_everything(random_seed)
        loss = scalar_loss(loss_fn(batch))
        if trainable and seed.optimizer is not None:
            gradients = torch.autograd.grad(loss, trainable, allow_unused=True)
            give_gradients(trainable, gradients)
            seed.optimizer.step()
            seed.optimizer.zero_grad(set_to_none=True)
    seed.shadow_steps += 1
    return float(loss.detach())


def held_out_losses(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Sequence[Any],
    seed: Seed | None = None,
) -> list[float]:
    """The loss of every batch in evaluation mode, with ``seed`` switched on if one is given.

    The host is left exactly as it was. A compiled host runs uncompiled with a seed and without
    one, so that nothing but the seed tells the two apart.
    """
    on = uncompiled() if seed is None else switched_on(model, seed)
    measured = [model] if seed is None else [model, seed.body]
    with HostGuard(model, freeze=False), evaluating(*measured), on:
        return [float(scalar_loss(loss_fn(batch))) for batch in batches]
