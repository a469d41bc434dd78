"""The user's own update as a fork runs it: whole batches, micro-batches, and what it changes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from esper.kasmina.errors import ObjectiveError
from esper.kasmina.host_update import HostUpdate, OwnStates


def test_a_whole_batch_is_one_loss_and_micro_batches_are_one_each() -> None:
    weight = torch.ones(1, requires_grad=True)

    def loss_fn(batch: Tensor) -> Tensor:
        return (weight * batch).sum()

    def accumulated(losses: Iterator[Tensor]) -> None:
        for loss in losses:
            (loss / 2).backward()

    one, two = torch.tensor(1.0), torch.tensor(4.0)
    whole = HostUpdate(lambda loss: loss.backward())
    assert whole.run(loss_fn, two) == 4.0 and whole.one(two) is two
    parts = HostUpdate(accumulated, accumulate=True)
    assert parts.run(loss_fn, [one, two]) == 2.5 and parts.one([one, two]) is one
    assert float(weight.grad) == 4.0 + 0.5 + 2.0


@pytest.mark.parametrize("taken", [0, 1])
def test_an_update_that_leaves_losses_is_told_of_the_iterator(taken: int) -> None:
    def update(losses: Iterator[Tensor]) -> None:
        for _ in range(taken):
            next(losses)

    parts = HostUpdate(update, accumulate=True)
    with pytest.raises(ObjectiveError, match=rf"took {taken} losses of a batch of 2 micro-batches"):
        parts.run(lambda batch: batch, [torch.tensor(1.0), torch.tensor(2.0)])


def test_states_are_exchanged_and_never_shared() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(1))
    states = OwnStates([scaler])
    scaler.update(2.0)
    states.swap()
    assert scaler.get_scale() == 8.0
    scaler.update(4.0)
    states.swap()
    assert scaler.get_scale() == 2.0
    states.swap()
    assert scaler.get_scale() == 4.0
