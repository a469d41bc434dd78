from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from esper.kasmina.slots import find_slots
from esper.telemetry.drift import EXAMPLES, activations, cosines
from esper.telemetry.layers import layers_of, outside


def test_only_what_has_moved_has_turned() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 4))
    x = torch.randn(EXAMPLES + 10, 5)
    layers = layers_of(model, find_slots(model, lambda: model(x)).slots.values())
    before = activations(model, layers, lambda: model(x))
    with torch.no_grad():
        model[2].weight.add_(torch.randn(4, 7))
    after = activations(model, layers, lambda: model(x))
    found = cosines(before, after)
    assert math.isclose(found["0"], 1.0, rel_tol=1e-6) and found["2"] < 0.999
    one, other = (y["2"].double().flatten() for y in (before, after))
    wanted = float(nn.functional.cosine_similarity(one, other, dim=0))
    assert math.isclose(found["2"], wanted, rel_tol=1e-5)
    assert before["2"].shape == (EXAMPLES, 4)
    assert not any(m._forward_hooks for m in model.modules())


def test_nothing_and_another_shape_compare_with_nothing() -> None:
    zeros: dict[str, Tensor] = {"a": torch.zeros(3), "b": torch.ones(2)}
    found = cosines(zeros, {"a": torch.ones(3), "b": torch.ones(4)})
    assert math.isnan(found.pop("a")) and not found


def test_the_sections_outside_a_span_are_all_but_those_within() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    slots = find_slots(model, lambda: model(torch.randn(2, 4))).slots
    assert [slot.id for slot in outside(slots.values(), slots["1..2"])] == ["0", "3"]
    assert [slot.id for slot in outside(slots.values(), slots["0"])] == ["1", "2", "3"]
