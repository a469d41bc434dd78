"""A plain training loop over examples in memory, the same for the host that grows and for the
two that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LRScheduler

from esper.kasmina.seed import evaluating
from esper.tolaria.config import OptimizerSettings
from esper.tolaria.data import Part

Batch = tuple[Tensor, Tensor]

EVALUATION_BATCH = 500
"""Examples evaluated at once, so that memory does not grow with the part."""


def batches_of(part: Part, size: int) -> list[Batch]:
    """The part in order, in batches of at most ``size`` examples."""
    return list(zip(torch.split(part.x, size), torch.split(part.y, size), strict=True))


def endless_batches(part: Part, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
    """Shuffled batches of exactly ``size`` examples (or all, where there are fewer), for ever,
    from number ``start`` on.

    Draws from a generator of its own, so that the order depends on ``seed`` alone.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(size, len(part.x))
    passes, place = divmod(start, len(part.x) // size)
    for _ in range(passes):
        torch.randperm(len(part.x), generator=generator)
    while True:
        order = torch.randperm(len(part.x), generator=generator)
        for rows in torch.split(order, size)[place:]:
            if len(rows) == size:
                yield part.x[rows], part.y[rows]
        place = 0


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
    """Mean cross-entropy, in nats, of ``model``'s logits on a batch of examples and classes, over
    all positions where an example has a class at each."""

    def loss_fn(batch: Batch) -> Tensor:
        x, y = batch
        return functional.cross_entropy(model(x).flatten(0, -2), y.flatten())

    return loss_fn


class Score(NamedTuple):
    """``accuracy`` in percent; ``loss`` the mean cross-entropy in nats."""

    accuracy: float
    loss: float


def evaluate(model: nn.Module, part: Part) -> Score:
    """How well ``model`` predicts the classes of the part, in evaluation mode."""
    right, loss = 0, 0.0
    with evaluating(model):
        for x, y in batches_of(part, EVALUATION_BATCH):
            logits, classes = model(x).flatten(0, -2), y.flatten()
            right += int((logits.argmax(dim=-1) == classes).sum())
            loss += float(functional.cross_entropy(logits, classes, reduction="sum"))
    return Score(100.0 * right / part.y.numel(), loss / part.y.numel())


def train_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    steps: int,
    after_step: Callable[[int, Batch, Tensor], None],
    *,
    scheduler: LRScheduler | None = None,
    start: int = 0,
) -> None:
    """Train up to optimizer step ``steps``, from the one after ``start`` on; ``after_step`` is
    called last in each."""
    loss_fn = classification_loss(model)
    model.train()
    for step in range(start + 1, steps + 1):
        batch = next(batches)
        loss = loss_fn(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
        after_step(step, batch, loss.detach())
