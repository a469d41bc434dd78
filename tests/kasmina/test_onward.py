"""The way from a slot to the next, run by itself, computes what the host computes there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.kasmina.activation import activation
from esper.kasmina.errors import ObjectiveError
from esper.kasmina.graft import GraftedSeed, attach
from esper.kasmina.onward import Onward, find_onward
from esper.kasmina.slots import find_slots
from support.hosts import HOSTS, bits, differing, noise_body

pytestmark = pytest.mark.usefixtures("quiet")


def way(model: nn.Module, x: Tensor, slot: str) -> Onward:
    slots = find_slots(model, lambda: model(x)).slots
    return find_onward(model, slots[slot], slots, lambda: model(x))


def outputs(model: nn.Module, x: Tensor, *paths: str) -> list[Tensor]:
    """The activations of modules in a pass."""
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda _, __, output, path=path: seen.update({path: activation(output).clone()})
        )
        for path in paths
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return [seen[path] for path in paths]


@pytest.mark.parametrize(
    ("host", "slot", "modules"),
    [
        ("mlp", "0", ["1"]),
        ("mlp", "1", ["2", "3", "4"]),
        ("mlp", "0..1", ["2", "3", "4"]),
        ("cnn", "3", ["4", "5", "6"]),
        ("tokens", "norm", ["attention"]),
    ],
)
def test_the_modules_up_to_the_next_slot_give_the_hosts_own_activation(
    host: str, slot: str, modules: list[str]
) -> None:
    model, x = HOSTS[host]()
    model.eval()
    before = bits(model)
    found = way(model, x, slot)
    assert differing(before, bits(model)) == []
    assert [step.path for step in found.steps] == modules
    assert found.end.id == modules[-1]
    h, after = outputs(model, x, slot.rpartition("..")[2], found.end.end)
    assert torch.equal(found.run(model, h), after)


def test_in_place_modules_and_containers_are_gone_through() -> None:
    inner = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4))
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Sequential(inner), nn.Tanh()), torch.randn(3, 4)
    found = way(model, x, "0")
    assert [step.path for step in found.steps] == ["1.0.0", "1.0.1"]
    h, after = outputs(model, x, "0", "1.0.1")
    assert torch.equal(found.run(model, h), after)


def test_what_has_grown_on_the_way_is_run_with_it() -> None:
    model, x = HOSTS["mlp"]()
    model.eval()
    slots = find_slots(model, lambda: model(x)).slots
    found = way(model, x, "1")
    graft = GraftedSeed(noise_body(slots["4"]), slots["4"])
    graft.alpha.fill_(1.0)
    attach(model, graft, "0", "4", "4")
    h, after = outputs(model, x, "1", "4")
    assert torch.equal(found.run(model, h), after)
    assert [step.path for step in way(model, x, "1").steps] == ["2", "3", "4"]


def test_a_grown_seed_that_reads_from_before_the_slot_is_in_the_way() -> None:
    model, x = HOSTS["mlp"]()
    slots = find_slots(model, lambda: model(x)).slots
    found = way(model, x, "1")
    attach(model, GraftedSeed(noise_body(slots["0..4"]), slots["0..4"]), "0", "0", "4")
    with pytest.raises(ObjectiveError, match="reads from before the slot"):
        found.run(model, torch.randn(8, 8))


class Functional(nn.Module):
    """Computes between its modules itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.b(functional.relu(self.a(x)))
        return h


class Masked(nn.Module):
    """Gives a module more than the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        h = self.a(x)
        mask = torch.zeros(h.shape[:2], dtype=torch.bool)
        return self.b(h, h, h, key_padding_mask=mask)[0]


@pytest.mark.parametrize(
    ("model", "shape", "slot", "reason"),
    [
        (Functional(), (3, 4), "a", "no module is given the output of 'a' as it is"),
        (Functional(), (3, 4), "b", "so it is the last one, or"),
        (Masked(), (3, 5, 4), "a", "'b' is given a Tensor besides the activation"),
    ],
)
def test_what_cannot_be_run_by_itself_is_refused_with_the_reason(
    model: nn.Module, shape: tuple[int, ...], slot: str, reason: str
) -> None:
    x = torch.randn(shape)
    before = bits(model)
    with pytest.raises(ObjectiveError, match=reason):
        way(model, x, slot)
    assert differing(before, bits(model)) == []
