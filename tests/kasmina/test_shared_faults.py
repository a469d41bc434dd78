"""What cannot share a pass: seeds that fail, hosts and losses that ``vmap`` cannot run."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from esper.kasmina.joint_optimizer import JointOptimizer
from esper.kasmina.seed import Seed
from esper.kasmina.shadow import LossFunction, held_out_losses, shadow_step
from esper.kasmina.shared import CannotShareError, shared_losses, shared_step
from esper.kasmina.slots import find_slots
from support.hosts import Checkpointed, bits, classify, differing, mlp, sgd_seed
from support.shared_passes import Setting, labels, setting, together

pytestmark = pytest.mark.usefixtures("quiet")


class Refusing(nn.Module):
    """A body that cannot take what it is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("not with me")


class Broad(Refusing):
    """A body that gives another shape than its slot has."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight)[..., :1]


def test_a_seed_that_fails_or_explodes_is_no_others_trouble() -> None:
    model, x = mlp(), torch.randn(8, 6)
    slots = find_slots(model, lambda: model(x)).slots
    batch, loss_fn = (x, labels(x, 3)), classify(model)

    def seeds(*bodies: nn.Module | None) -> list[Seed]:
        torch.manual_seed(3)
        names = ("0", "0", "0..4", "0", "4")
        return [
            sgd_seed(slots[name], body, number)
            for number, (name, body) in enumerate(zip(names, bodies, strict=True))
        ]

    exploding = nn.Linear(8, 8)
    nn.init.constant_(exploding.weight, math.inf)
    good = [nn.Linear(8, 8), nn.Linear(6, 3), nn.Linear(3, 3)]
    odd = seeds(Refusing(8), copy.deepcopy(good[0]), copy.deepcopy(good[1]), exploding, None)
    odd[4] = sgd_seed(slots["4"], Broad(3), 4)
    found = Setting(model, batch, loss_fn, odd)
    losses = together(found)
    assert str(losses[0]) == "not with me"
    assert "its body gave [8, 1], wanted the slot's [8, 3]" in str(losses[4])
    assert isinstance(losses[3], float) and math.isnan(losses[3])
    alone = [sgd_seed(slots["0"], good[0], 1), sgd_seed(slots["0..4"], good[1], 2)]
    own = [shadow_step(model, seed, loss_fn, batch, 5) for seed in alone]
    assert losses[1:3] == pytest.approx(own, rel=1e-6)
    for seed, other in zip(odd[1:3], alone, strict=True):
        assert torch.allclose(seed.parameters[0], other.parameters[0], rtol=1e-5, atol=1e-6)
    assert [seed.shadow_steps for seed in odd] == [0, 1, 1, 1, 0]
    measured = shared_losses(model, odd, loss_fn, [batch, batch])
    assert [isinstance(values, Exception) for values in measured] == [
        True,
        False,
        False,
        False,
        True,
    ]
    assert measured[1] == pytest.approx(held_out_losses(model, loss_fn, [batch] * 2, odd[1]))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2.0 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2.0 * grad


def reads_a_number(model: nn.Module) -> LossFunction:
    def loss_fn(batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = classify(model)(batch)
        return loss / max(1.0, loss.item())

    return loss_fn


def decides_by_data(model: nn.Module) -> LossFunction:
    def loss_fn(batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = model(batch[0])
        return functional.cross_entropy(logits[logits[:, 0] > -9.0], batch[1])

    return loss_fn


def writes_into_its_own(model: nn.Module) -> LossFunction:
    def loss_fn(batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.zeros(()).add_(classify(model)(batch))

    return loss_fn


def calls_a_function(model: nn.Module) -> LossFunction:
    def loss_fn(batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(Doubled.apply(model(batch[0])), batch[1])

    return loss_fn


def recomputes(model: nn.Module) -> LossFunction:
    """Softmax over the first axis: run again outside of ``vmap`` that would be another one."""

    def loss_fn(batch: tuple[Tensor, Tensor]) -> Tensor:
        h = model(batch[0])
        out: Tensor = checkpoint(lambda t: (t * t).softmax(0), h, use_reentrant=False)
        return functional.nll_loss(out, batch[1])

    return loss_fn


UNSHAREABLE: dict[str, Callable[[nn.Module], LossFunction]] = {
    "item": reads_a_number,
    "a mask": decides_by_data,
    "in place": writes_into_its_own,
    "a function without vmap": calls_a_function,
    "checkpointing": recomputes,
}


@pytest.mark.parametrize("name", UNSHAREABLE)
def test_what_vmap_cannot_run_is_said_and_nothing_has_happened(name: str) -> None:
    found = setting(mlp(), torch.randn(8, 6), UNSHAREABLE[name])
    before, weights = bits(found.model), [bits(seed.body) for seed in found.seeds]
    with pytest.raises(CannotShareError, match="seeds cannot share a pass here"):
        together(found)
    assert differing(before, bits(found.model)) == []
    for seed, unchanged in zip(found.seeds, weights, strict=True):
        assert differing(unchanged, bits(seed.body)) == []
        assert seed.shadow_steps == 0
        assert math.isfinite(shadow_step(found.model, seed, found.loss_fn, found.batch, 0))


def test_a_checkpointed_host_is_measured_together_and_trained_apart() -> None:
    model, x = Checkpointed(), torch.randn(8, 4)

    def loss_fn(batch: Tensor) -> Tensor:
        loss: Tensor = model(batch).square().mean()
        return loss

    slots = find_slots(model, lambda: model(x)).slots
    seeds = [sgd_seed(slots[name], number=n) for n, name in enumerate(("a.0", "b.0", "a.2..b.0"))]
    with pytest.raises(CannotShareError, match="recomputed"):
        shared_step(model, seeds, loss_fn, x, 0, JointOptimizer(seeds))
    measured = shared_losses(model, seeds, loss_fn, [x])
    for seed, losses in zip(seeds, measured, strict=True):
        assert losses == pytest.approx(held_out_losses(model, loss_fn, [x], seed), rel=1e-6)


def test_a_slot_that_one_pass_leaves_out_cannot_be_shared() -> None:
    class Now(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.both = True

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            logits: Tensor = self.head(self.b(h) if self.both else h)
            return logits

    model, x = Now(), torch.randn(8, 4)
    slots = find_slots(model, lambda: model(x)).slots
    seeds = [sgd_seed(slots[name], number=n) for n, name in enumerate("ab")]
    model.both = False
    with pytest.raises(CannotShareError, match="slot b was come to 0 times"):
        together(Setting(model, (x, labels(x, 3)), classify(model), seeds))
