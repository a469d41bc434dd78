"""What no one call takes: seeds with a fault of their own, bodies that are called."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.blueprints.ir import Blueprint, LowRank, Size
from esper.kasmina import bodies
from esper.kasmina.residual import TwoLayers
from esper.kasmina.seed import Seed
from esper.kasmina.shadow import LossFunction, held_out_losses, shadow_step
from esper.kasmina.shared import shared_losses
from esper.kasmina.signature import Slot
from esper.kasmina.slots import find_slots
from support.hosts import classify, mlp, sgd_seed
from support.shared_passes import (
    Setting,
    double,
    doubles,
    labels,
    planted,
    seeds_of,
    through,
    together,
)

pytestmark = pytest.mark.usefixtures("quiet")

RELU = through("relu")


class Offering(nn.Module):
    """A body of somebody else's."""

    def __init__(self, width: int, between: Any = torch.relu) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, 2), nn.Linear(2, width)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.up(self.between(self.down(x)))
        return result

    def two_layers(self) -> TwoLayers | None:
        down, up = self.down, self.up
        return TwoLayers(down.weight, down.bias, up.weight, up.bias, self.between)


class Silent(Offering):
    """It does not know what it is."""

    def two_layers(self) -> TwoLayers | None:
        raise ValueError("do not ask")


def test_a_fault_is_its_seeds_own(calls: list[int]) -> None:
    """Equal ones go on in one call beside one with a bad shape, one that raises, one with NaN."""
    model, x = mlp().double(), doubles(8, 6)
    slot = find_slots(model, lambda: model(x)).slots["0"]
    torch.manual_seed(1)
    made = [Offering(8).double() for _ in range(5)]
    broken, silent, exploding = Offering(8).double(), Silent(8).double(), Offering(8).double()
    broken.up = nn.Linear(3, 8, dtype=torch.float64)
    exploding.up.weight.data[0, 0] = math.nan
    odd = [made[0], broken, made[1], silent, made[2], exploding, *made[3:]]
    found = Setting(
        model,
        (x, labels(x, 3)),
        classify(model),
        [sgd_seed(slot, copy.deepcopy(body), number) for number, body in enumerate(odd)],
    )
    alone = found.copies()
    losses = together(found)
    assert calls == [6]
    assert "shapes cannot be multiplied" in str(losses[1]) and str(losses[3]) == "do not ask"
    assert math.isnan(losses[5])  # type: ignore[arg-type]
    for number in (0, 2, 4, 6, 7):
        own = shadow_step(model, alone[number], found.loss_fn, found.batch, 5)
        assert losses[number] == pytest.approx(own, rel=1e-12)
        for p, q in zip(found.seeds[number].parameters, alone[number].parameters, strict=True):
            assert torch.allclose(p, q, rtol=1e-11, atol=1e-12)
    measured = shared_losses(model, found.seeds, found.loss_fn, [found.batch])
    assert [isinstance(values, Exception) for values in measured] == [n in (1, 3) for n in range(8)]


def test_a_call_without_memory_ends_its_seeds_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(bodies, "residual_graft", full)
    found = planted(*double("mlp"), ("0", RELU, 6), ("4", RELU, 2))
    losses = together(found)
    assert [str(loss) for loss in losses[:6]] == ["no memory"] * 6
    assert all(isinstance(loss, float) for loss in losses[6:])
    assert [seed.shadow_steps for seed in found.seeds] == [0] * 6 + [1, 1]


def autocasting(model: nn.Module) -> LossFunction:
    def loss_fn(batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[0])
        return functional.cross_entropy(logits.float(), batch[1])

    return loss_fn


class Frozen(nn.Module):
    """Computes its features in inference mode, to be read and not to be differentiated."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            h = self.features(x)
        logits: Tensor = self.head(h.clone())
        return logits


class Unhashable:
    """An activation that no dictionary takes."""

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, x: Tensor) -> Tensor:
        return x.sin()


def of_kind(slot: Slot, make: Callable[[], nn.Module]) -> list[Seed]:
    return [sgd_seed(slot, make(), number) for number in range(6)]


def wide(slot: Slot) -> Sequence[Seed]:
    """More weights than one call is measured to be faster for."""
    rank = Size("one", bodies.LARGE_RANK + 1)
    node = LowRank(0, rank, Size("out"), init="zero")
    return seeds_of(slot, Blueprint("pair", "output", (node,)), 6)


CALLED: dict[str, Callable[[Slot], Sequence[Seed]]] = {
    "too wide": wide,
    "a strange activation": lambda slot: of_kind(slot, lambda: Offering(8, torch.sin)),
    "an unhashable one": lambda slot: of_kind(slot, lambda: Offering(8, Unhashable())),
    "an activation each": lambda slot: of_kind(slot, lambda: Offering(8, lambda x: x.relu())),
}


@pytest.mark.parametrize("name", CALLED)
def test_other_bodies_are_called(name: str, calls: list[int]) -> None:
    model, x = mlp(), torch.randn(8, 6)
    slot = find_slots(model, lambda: model(x)).slots["0"]
    found = Setting(model, (x, labels(x, 3)), classify(model), list(CALLED[name](slot)))
    assert all(isinstance(loss, float) for loss in together(found))
    assert calls == []


def test_under_autocast_bodies_are_called(calls: list[int]) -> None:
    found = planted(mlp(), torch.randn(8, 6), ("0", RELU, 6))
    found.loss_fn = autocasting(found.model)
    alone = found.copies()
    losses = together(found)
    own = [shadow_step(found.model, s, found.loss_fn, found.batch, 5) for s in alone]
    assert losses == pytest.approx(own, rel=1e-2) and calls == []


def test_autocast_around_a_host_that_computes_without_it_is_not_asked(calls: list[int]) -> None:
    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                logits: Tensor = self.head(self.a(x))
            return logits

    found = planted(Exact(), torch.randn(8, 6), ("a", RELU, 6))
    wanted = together(found, found.copies())
    with torch.autocast("cpu", torch.bfloat16):
        assert together(found) == pytest.approx(wanted, rel=1e-6)
    assert calls == [6, 6]


def test_in_inference_mode_bodies_are_called(calls: list[int]) -> None:
    model, x = Frozen(), torch.randn(8, 6)
    slots = find_slots(model, lambda: model(x)).slots
    seeds = [*seeds_of(slots["features"], RELU, 6), *seeds_of(slots["head"], RELU, 1, 6)]
    found = Setting(model, (x, labels(x, 3)), classify(model), seeds)
    own = [held_out_losses(model, found.loss_fn, [found.batch], s)[0] for s in seeds]
    assert together(found) == pytest.approx(own, rel=1e-6) and calls == []
