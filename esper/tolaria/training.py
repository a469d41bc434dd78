"""A plain training loop over examples in memory, the same for the host that grows and for the
two that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.kasmina.seed import evaluating
from esper.tolaria.config import OptimizerSettings
from esper.tolaria.data import Part

Batch = tuple[Tensor, Tensor]


def batches_of(part: Part, size: int) -> list[Batch]:
    """The part in order, in batches of at most ``size`` examples."""
    return list(zip(torch.split(part.x, size), torch.split(part.y, size), strict=True))


def endless_batches(part: Part, size: int, seed: int) -> Iterator[Batch]:
    """Shuffled batches of exactly ``size`` examples (or all, where there are fewer), for ever.

    Draws from a generator of its own, so that the order depends on ``seed`` alone.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(size, len(part.x))
    while True:
        order = torch.randperm(len(part.x), generator=generator)
        for rows in torch.split(order, size):
            if len(rows) == size:
                yield part.x[rows], part.y[rows]


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The configured optimizer over all parameters of ``model``."""
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    match settings.name:
        case "sgd":
            return torch.optim.SGD(model.parameters(), momentum=settings.momentum, **common)
        case "adam":
            return torch.optim.Adam(model.parameters(), betas=settings.betas, **common)
        case "adamw":
            return torch.optim.AdamW(model.parameters(), betas=settings.betas, **common)


def classification_loss(model: nn.Module) -> Callable[[Batch], Tensor]:
    """Mean cross-entropy of ``model``'s logits on a batch of examples and classes."""

    def loss_fn(batch: Batch) -> Tensor:
        x, y = batch
        return functional.cross_entropy(model(x), y)

    return loss_fn


def accuracy(model: nn.Module, part: Part) -> float:
    """Percent of the part that ``model`` classifies rightly, in evaluation mode."""
    with evaluating(model):
        right = int((model(part.x).argmax(dim=1) == part.y).sum())
    return 100.0 * right / len(part.y)


def train_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    steps: int,
    after_step: Callable[[int, Batch, Tensor], None],
) -> None:
    """Train for ``steps`` optimizer steps; ``after_step`` is called after each."""
    loss_fn = classification_loss(model)
    model.train()
    for step in range(1, steps + 1):
        batch = next(batches)
        loss = loss_fn(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        after_step(step, batch, loss.detach())
