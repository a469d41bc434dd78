from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import esper
from esper.kasmina.slots import find_slots
from esper.telemetry.errors import TelemetryError
from esper.telemetry.layers import Layer, input_rows, layers_of, output_rows
from esper.telemetry.meter import LayerFigures, LayerMeter
from esper.telemetry.passes import measure

Batch = tuple[Tensor, Tensor]


def host() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.BatchNorm1d(6)),
        *(nn.Dropout(0.2), nn.Linear(6, 3)),
    )


def batches(count: int = 3, size: int = 16) -> list[Batch]:
    torch.manual_seed(1)
    return [(torch.randn(size, 4), torch.randint(3, (size,))) for _ in range(count)]


def loss_of(model: nn.Module) -> Callable[[Batch], Tensor]:
    return lambda batch: cross_entropy(model(batch[0]), batch[1])


def found(model: nn.Module, data: list[Any], **options: Any) -> dict[str, LayerFigures]:
    return {x.name: x for x in esper.inspect(model, loss_of(model), data, **options).layers}


def test_figures_are_those_of_every_example() -> None:
    model, data = host().double().eval(), [(x.double(), y) for x, y in batches()]
    figures = found(model, data)
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    h = model[0](x).detach().requires_grad_()
    loss = cross_entropy(model[4](model[2](h.relu())), y, reduction="sum")
    (g,) = torch.autograd.grad(loss, h)
    first = figures["0"]
    assert (first.kind, first.inputs, first.outputs, first.examples) == ("Linear", 4, 6, 48)
    assert math.isclose(first.gradient**2, float(g.square().sum() / 48), rel_tol=1e-9)
    assert first.largest == float(x.abs().max())
    a = torch.cat([x, torch.ones(48, 1, dtype=torch.float64)], 1)
    left = g - a @ torch.linalg.lstsq(a, g).solution
    bottleneck = left.square().sum() / 48 / (1 - 5 / 48)
    assert math.isclose(first.bottleneck, float(bottleneck), rel_tol=1e-6)
    covariance = torch.cov(x.T)
    rank = covariance.trace() ** 2 / covariance.square().sum()
    assert math.isclose(first.effective_rank, float(rank), rel_tol=1e-9)
    assert math.isnan(figures["2"].unreachable) and figures["2"].gradient > 0.0


def test_dead_units_are_counted_where_they_arrive_and_idle_ones_where_they_are() -> None:
    model = host()
    with torch.no_grad():
        model[0].weight[:2] = 0.0
        model[0].bias[:2] = -1.0
    figures = found(model, batches())
    assert (figures["2"].dead, figures["2"].silent, figures["0"].idle) == (2, 2, 2)
    assert figures["0"].dead == 0


def test_what_is_not_finite_is_counted_and_left_out_of_the_magnitude() -> None:
    model, data = host().eval(), batches(1)
    data[0][0][0, 1], data[0][0][3, 2] = math.nan, math.inf
    model(data[0][0])
    first = found(model, data)["0"]
    assert first.not_finite >= 2 and 0.0 < first.largest < math.inf
    assert math.isnan(first.unreachable)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_no_trace(training: bool) -> None:
    model, data = host().train(training), batches()
    loss_of(model)(data[0]).backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    state = torch.get_rng_state()
    esper.inspect(model, loss_of(model), data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    kept = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(map(torch.equal, kept, gradients)) and len(kept) == len(gradients)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training is training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_evaluation_mode_is_asked_for() -> None:
    model, data = host().train(), batches()
    asked, trained = found(model, data, evaluation=True), found(model, data)
    evaluated = found(model.eval(), data)
    assert asked["4"] == evaluated["4"] != trained["4"]


CONVOLUTIONS = {
    "strided": nn.Conv2d(3, 4, 3, stride=2, padding=1),
    "dilated": nn.Conv2d(3, 4, (3, 2), dilation=2, padding="same", padding_mode="circular"),
    "valid": nn.Conv2d(3, 4, 3, padding="valid", bias=False),
    "one dimension": nn.Conv1d(3, 4, 5, stride=2, padding=2),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_rows_times_weights_are_the_output(name: str) -> None:
    convolution = CONVOLUTIONS[name]
    layer = Layer(name, convolution, 1, 0)
    x = torch.randn(2, 3, 9, 8) if isinstance(convolution, nn.Conv2d) else torch.randn(2, 3, 9)
    rows = input_rows(layer, x) @ convolution.weight.flatten(1).T
    if convolution.bias is not None:
        rows = rows + convolution.bias
    assert layer.linear and layer.constant == (convolution.bias is not None)
    torch.testing.assert_close(rows, output_rows(layer, convolution(x)))


def test_large_images_are_sampled_by_examples() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 40 * 40, 3))
    data = [(torch.randn(8, 1, 42, 42), torch.randint(3, (8,)))]
    figures = found(model, data)
    assert 0.0 < figures["0"].unreachable <= 1.0
    assert math.isnan(figures["2"].unreachable)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.body, self.head = nn.Linear(4, 4), host(), nn.Linear(3, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.body, self.first(x), use_reentrant=self.reentrant)
        return self.head(y)


def test_a_checkpointed_host_is_seen_once() -> None:
    model, data = Checkpointed(False).eval(), batches(1)
    plain = nn.Sequential(model.first, model.body, model.head)
    assert found(model, data)["body.0"].gradient == found(plain, data)["1.0"].gradient > 0.0
    assert found(model, data)["body.0"].examples == 16


def test_reentrant_checkpoints_are_refused_with_the_way_out() -> None:
    model = Checkpointed(True).eval()
    with pytest.raises(TelemetryError, match="use_reentrant=False"):
        esper.inspect(model, loss_of(model), batches(1))


def test_frozen_layers_have_no_gradient_and_a_frozen_host_none_at_all() -> None:
    model = host().eval()
    model[0].requires_grad_(False)
    figures = found(model, batches())
    assert math.isnan(figures["0"].gradient) and figures["2"].gradient > 0.0
    assert all(
        math.isnan(x.gradient) for x in found(model.requires_grad_(False), batches()).values()
    )


def test_an_inspection_is_a_table_and_names_what_is_left_out() -> None:
    model = host()
    inspection = esper.inspect(model, loss_of(model), batches(6))
    lines = str(inspection).splitlines()
    assert lines[0].split()[:2] == ["layer", "kind"] and lines[1].split()[:2] == ["0", "Linear"]
    assert "not measured: 1: no slots on ReLU" in lines
    most, *rest = inspection.held_back
    assert all(most.unreachable >= layer.unreachable for layer in rest)
    with pytest.raises(TelemetryError, match="no batches"):
        esper.inspect(model, loss_of(model), [])


def test_an_input_that_is_written_over_is_left_out_of_the_moments() -> None:
    model, data = host().eval(), batches(1)
    model[0].requires_grad_(False)

    def loss(batch: Batch) -> Tensor:
        x = batch[0].clone()
        h = model[0](x).requires_grad_()
        x.zero_()
        return cross_entropy(model[4](model[2](h.relu())), batch[1])

    slots = find_slots(model, lambda: loss(data[0])).slots.values()
    meters = [LayerMeter(layer) for layer in layers_of(model, slots)]
    measure(model, meters, loss, data[0])
    first = meters[0].figures()
    assert first.largest > 0.0 and math.isnan(first.unreachable)
