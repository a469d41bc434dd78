from __future__ import annotations

import math

import torch
from torch import nn

from esper.kasmina.slots import find_slots
from esper.telemetry.activations import measure_inputs


def host() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3))


def test_dead_units_are_counted_where_they_arrive() -> None:
    model = host()
    with torch.no_grad():
        model[0].weight[:2] = 0.0
        model[0].bias[:2] = -1.0
        model[0].bias[2:] = 5.0
    x = torch.rand(16, 4)
    slots = find_slots(model, lambda: model(x)).slots.values()
    found = measure_inputs(model, slots, lambda: model(x))
    assert (found["2"].features, found["2"].dead, found["2"].silent) == (6, 2, 2)
    assert found["0"].dead == 0
    assert math.isclose(found["0"].largest, float(x.abs().max()), rel_tol=1e-6)


def test_what_is_not_finite_is_counted_and_left_out_of_the_magnitude() -> None:
    model = host()
    x = torch.rand(8, 4)
    slots = find_slots(model, lambda: model(x)).slots.values()
    x[0, 1], x[3, 2] = math.nan, math.inf
    found = measure_inputs(model, slots, lambda: model(x))["0"]
    assert found.not_finite == 2
    assert 0.0 < found.largest <= 1.0


def test_measuring_leaves_no_trace() -> None:
    model = host().train()
    x = torch.rand(8, 4)
    slots = find_slots(model, lambda: model(x)).slots.values()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    measure_inputs(model, slots, lambda: model(x) + torch.rand(1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
