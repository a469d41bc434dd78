"""Seeds that share a pass of their host: as if each had had its own."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from esper.blueprints.build import applies, build
from esper.blueprints.library import LIBRARY
from esper.kasmina.joint_optimizer import JointOptimizer
from esper.kasmina.lattice import install_fossil
from esper.kasmina.seed import Seed
from esper.kasmina.shadow import LossFunction, held_out_losses, shadow_step
from esper.kasmina.shared import CannotShareError, shared_losses, shared_step
from esper.kasmina.signature import Slot
from esper.kasmina.slots import find_slots
from support.hosts import HOSTS, Checkpointed, Tokens, bits, classify, differing, mlp, sgd_seed

pytestmark = pytest.mark.usefixtures("quiet")


@dataclass
class Setting:
    """A host with a batch, its objective and seeds in many of its slots."""

    model: nn.Module
    batch: Any
    loss_fn: LossFunction
    seeds: list[Seed]

    def copies(self) -> list[Seed]:
        """Seeds with the same weights and optimizers of their own."""
        return [sgd_seed(s.slot, copy.deepcopy(s.body), s.id) for s in self.seeds]


def noisy(slot: Slot, number: int) -> Seed | None:
    """A seed of the blueprint library with noise for weights; None where none fits."""
    for blueprint in list(LIBRARY.values())[number % 3 :]:
        if blueprint.source == slot.source and applies(blueprint, slot) is None:
            generator = torch.Generator().manual_seed(number)
            body = build(blueprint, slot, generator)
            for parameter in body.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
            if any(parameter.requires_grad for parameter in body.parameters()):
                return sgd_seed(slot, body, number)
    return None


def setting(
    model: nn.Module,
    x: Tensor,
    loss_of: Callable[[nn.Module], LossFunction] = classify,
    classes: int = 3,
    most: int = 12,
) -> Setting:
    slots = list(find_slots(model, lambda: loss_of(model)((x, _labels(x, classes)))).slots.values())
    tried = (noisy(slot, number) for number, slot in enumerate(slots * 2))
    seeds = [seed for seed in tried if seed is not None]
    assert len({seed.slot.id for seed in seeds}) > 1
    return Setting(
        model, (x, _labels(x, classes)), loss_of(model), seeds[:: -(-len(seeds) // most)]
    )


def _labels(x: Tensor, classes: int) -> Tensor:
    return torch.arange(len(x)) % classes


class Permuted(nn.Module):
    """Drops elements of an activation that is laid out in another order than its axes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.transpose(0, 1)).transpose(0, 1)
        logits: Tensor = self.head(self.b(self.drop(h)).mean(1))
        return logits


@pytest.mark.parametrize("beside", ["a", "b"])
def test_a_body_reads_what_its_own_row_has_whatever_the_order_of_a_mask(beside: str) -> None:
    """It takes away what it reads, and nothing is left."""
    model, x = Permuted().double(), doubles(8, 5, 6)
    slots = find_slots(model, lambda: model(x)).slots
    taking = nn.Linear(6, 6, bias=False, dtype=torch.float64)
    taking.weight.data = -torch.eye(6, dtype=torch.float64)
    seeds = [sgd_seed(slots[beside]), sgd_seed(slots["b"], taking, 1)]
    batch, loss_fn = (x, _labels(x, 3)), classify(model)
    nothing = functional.cross_entropy(model.head.bias.expand(8, 3), batch[1])
    losses = together(Setting(model, batch, loss_fn, seeds))
    assert losses[1] == pytest.approx(nothing.item(), rel=1e-12)


def some_batchnorm_evaluates() -> Setting:
    model = mlp().double()
    model[1].eval()
    return setting(model, torch.randn(8, 6, dtype=torch.float64))


def grown() -> Setting:
    """Two fossils in one slot, one across another."""
    found = setting(mlp().double(), torch.randn(8, 6, dtype=torch.float64))
    for seed in found.seeds[:3]:
        install_fossil(found.model, seed)
    return setting(found.model, found.batch[0])


class SequenceFirst(nn.Module):
    """``[batch, 5, 6]`` to 3 logits, sequence-first inside."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 6)
        self.norm = nn.LayerNorm(6)
        self.attention = nn.MultiheadAttention(6, 2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.rnn(x.transpose(0, 1))
        h = self.norm(h)
        h = h + self.attention(h, h, h)[0]
        logits: Tensor = self.head(h.mean(0))
        return logits


class Inplace(nn.Module):
    """Writes over activations that seeds read."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.ReLU(inplace=True)
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(x))
        return logits


class Restless(nn.Module):
    """``[batch, 6]`` to 3 logits by how often it was called and by three generators."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.calls = 0
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.last is not None and self.last.dim() != 2:
            raise RuntimeError("a pass of several seeds has left its activations behind")
        self.calls += 1
        self.seen += x.mean()
        noise = random.random() + float(np.random.rand()) + torch.rand(())
        self.last = self.head(self.body(x * self.calls + self.seen) * noise)
        return self.last


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


SETTINGS: dict[str, Callable[[], Setting]] = {
    "mlp": lambda: setting(mlp().double(), doubles(8, 6)),
    "mlp in evaluation": lambda: setting(mlp().double().eval(), doubles(8, 6)),
    "one BatchNorm evaluates": some_batchnorm_evaluates,
    "cnn": lambda: setting(HOSTS["cnn"]()[0].double(), doubles(8, 1, 6, 6)),
    "attention": lambda: setting(Tokens().double(), torch.randint(11, (8, 5))),
    "attention in evaluation": lambda: setting(Tokens().double().eval(), torch.randint(11, (8, 5))),
    "sequence first": lambda: setting(SequenceFirst().double(), doubles(8, 5, 6)),
    "fossils": grown,
    "restless": lambda: setting(Restless().double(), doubles(8, 6)),
    "written in place": lambda: setting(Inplace().double(), doubles(8, 6)),
}


def together(
    found: Setting, seeds: Sequence[Seed] | None = None, draw: int = 5
) -> list[float | Exception]:
    seeds = found.seeds if seeds is None else seeds
    optimizer = JointOptimizer(seeds)
    return shared_step(found.model, seeds, found.loss_fn, found.batch, draw, optimizer)


@pytest.mark.parametrize("name", SETTINGS)
def test_seeds_learn_and_measure_together_as_each_would_alone(name: str) -> None:
    found = SETTINGS[name]()
    alone, before = found.copies(), bits(found.model)
    for draw in (1, 2):
        losses = together(found, draw=draw)
        own = [shadow_step(found.model, s, found.loss_fn, found.batch, draw) for s in alone]
        assert losses == pytest.approx(own, rel=1e-12)
        for seed, other in zip(found.seeds, alone, strict=True):
            for p, q in zip(seed.parameters, other.parameters, strict=True):
                assert torch.allclose(p, q, rtol=1e-11, atol=1e-12)
    assert len({round(loss, 9) for loss in own}) > 1, "each has a loss of its own"
    batches = [found.batch, (found.batch[0].flip(0), found.batch[1])]
    measured = shared_losses(found.model, found.seeds, found.loss_fn, batches)
    for seed, values in zip(alone, measured, strict=True):
        own = held_out_losses(found.model, found.loss_fn, batches, seed)
        assert values == pytest.approx(own, rel=1e-12)
    assert [seed.shadow_steps for seed in found.seeds] == [2] * len(found.seeds)
    assert differing(before, bits(found.model)) == []
    assert all(p.grad is None for seed in found.seeds for p in seed.parameters)


def test_single_precision_is_as_near_to_double_as_rounding_lets_it() -> None:
    model, x = mlp(), torch.randn(8, 6)
    model[3].p = 0.0
    found = setting(model, x)
    reference = Setting(
        copy.deepcopy(model).double(),
        (x.double(), found.batch[1]),
        found.loss_fn,
        [sgd_seed(s.slot, copy.deepcopy(s.body).double(), s.id) for s in found.seeds],
    )
    reference.loss_fn = classify(reference.model)
    assert together(found) == pytest.approx(together(reference), rel=1e-5)
    for seed, exact in zip(found.seeds, reference.seeds, strict=True):
        for p, q in zip(seed.parameters, exact.parameters, strict=True):
            assert torch.allclose(p.double(), q, rtol=1e-4, atol=1e-6)


def test_under_autocast_bodies_compute_as_they_do_in_the_host() -> None:
    def loss_of(model: nn.Module) -> LossFunction:
        def loss_fn(batch: tuple[Tensor, Tensor]) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch[0])
            return functional.cross_entropy(logits.float(), batch[1])

        return loss_fn

    found = setting(mlp(), torch.randn(16, 6), loss_of)
    alone = found.copies()
    losses = together(found)
    own = [shadow_step(found.model, s, found.loss_fn, found.batch, 5) for s in alone]
    assert losses == pytest.approx(own, rel=1e-2)
    for seed, other in zip(found.seeds, alone, strict=True):
        for p, q in zip(seed.parameters, other.parameters, strict=True):
            assert torch.allclose(p, q, rtol=0.05, atol=1e-2)


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
    batch, loss_fn = (x, _labels(x, 3)), classify(model)

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
        together(Setting(model, (x, _labels(x, 3)), classify(model), seeds))


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "looped": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False, fused=False),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_joint_step_is_the_step_of_each_and_each_keeps_its_own_state(name: str) -> None:
    model, x = mlp(), torch.randn(8, 6)
    slot = find_slots(model, lambda: model(x)).slots["0"]
    seeds = [sgd_seed(slot, nn.Linear(8, 8), number) for number in range(4)]
    alone = [sgd_seed(slot, copy.deepcopy(seed.body), seed.id) for seed in seeds]
    for seed in (*seeds, *alone):
        seed.optimizer = OPTIMIZERS[name](seed.parameters)
    slow = OPTIMIZERS[name](seeds[3].parameters)
    slow.param_groups[0]["lr"] = alone[3].optimizer.param_groups[0]["lr"] = 1e-4
    seeds[3].optimizer = slow
    joint = JointOptimizer(seeds)
    for step in range(4):
        for seed, other in zip(seeds, alone, strict=True):
            for p, q in zip(seed.parameters, other.parameters, strict=True):
                p.grad = torch.randn(p.shape) if (step, seed.id) != (1, 2) else None
                q.grad = None if p.grad is None else p.grad.clone()
            if step == 2:
                seed.optimizer.step()
            other.optimizer.step()
        if step != 2:
            joint.step()
    for seed, other in zip(seeds, alone, strict=True):
        for p, q in zip(seed.parameters, other.parameters, strict=True):
            assert torch.allclose(p, q, rtol=1e-5, atol=1e-7)
            mine, theirs = seed.optimizer.state[p], other.optimizer.state[q]
            assert mine.keys() == theirs.keys()
            for key, value in mine.items():
                assert torch.allclose(torch.as_tensor(value), torch.as_tensor(theirs[key]), 1e-4)
    assert all(parameter.grad is None for seed in seeds for parameter in seed.parameters)
