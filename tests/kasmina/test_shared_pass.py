"""Seeds that share a pass of their host: as if each had had its own."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.kasmina.lattice import install_fossil
from esper.kasmina.shadow import LossFunction, held_out_losses, shadow_step
from esper.kasmina.shared import shared_losses
from esper.kasmina.slots import find_slots
from support.hosts import HOSTS, Tokens, bits, classify, differing, mlp, sgd_seed
from support.shared_passes import SequenceFirst, Setting, doubles, labels, setting, together

pytestmark = pytest.mark.usefixtures("quiet")


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
    batch, loss_fn = (x, labels(x, 3)), classify(model)
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
