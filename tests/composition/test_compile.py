"""A compiled host: what grows is seen, what is only tried costs no compilation."""

from __future__ import annotations

import pytest
import torch

from esper.blueprints.library import LIBRARY
from esper.kasmina.graft import GraftedSeed, gated
from esper.kasmina.shadow import held_out_losses
from esper.kasmina.slots import find_slots
from esper.telemetry.layers import layers_of
from esper.telemetry.meter import LayerMeter
from esper.telemetry.passes import measure
from esper.tolaria.trials import new_seed
from esper_events.events import TrialMeasured
from esper_events.stages import Stage
from support.growth_runs import FAST, OneSeed, bits, events, same, stages, with_
from support.ways import SLOT, STEPS, Compiled, CompiledByLayer, CompiledInPlace, Way

BLEND = "esper.graft_blend"


def operators(graph: torch.fx.GraphModule) -> str:
    """The names of what a graph calls."""
    return " ".join(str(node.target) for node in graph.graph.nodes)


@pytest.mark.parametrize("make", [Compiled, CompiledInPlace])
def test_a_seed_that_is_kept_costs_one_compilation_from_its_graft_to_the_fossil(
    make: type[Compiled],
) -> None:
    ends = []
    for kind in (make, Way):
        way = kind()
        growth = way.through(OneSeed(*SLOT))
        assert stages(growth.records())[-1] == "fossilized"
        ends.append(bits(way))
        if isinstance(way, Compiled):
            host, grown = way.graphs
            assert [BLEND in operators(graph) for graph in (host, grown)] == [False, True]
    assert same(*ends)


def trained_on(way: Compiled) -> dict[str, torch.Tensor]:
    """The gradients of one batch, by name."""
    way.model.zero_grad()
    way.loss_fn(way.batches[0]).backward()
    return {name: p.grad.clone() for name, p in way.model.named_parameters() if p.grad is not None}


def test_compiled_code_lets_gradients_through_a_fossil_and_none_through_a_graft() -> None:
    way = Compiled()
    growth = way.grow(FAST, OneSeed("layer1", "bottleneck_mlp"), **way.given())
    while [row.stage for row in growth.seed_rows()] != [Stage.EVALUATING]:
        way.run(1)
    way.model.eval()
    (graft,) = [module for module in way.model.modules() if isinstance(module, GraftedSeed)]
    found = []
    for isolated in (True, False):
        graft.isolated = isolated
        found.append([trained_on(way)])
        with torch.compiler.set_stance("force_eager"):
            found[-1].append(trained_on(way))
    closed, opened = found
    for compiled, eager in found:
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-7)
    first = next(iter(closed[0]))
    assert not torch.allclose(closed[0][first], opened[0][first], rtol=1e-3)
    graft.isolated = True
    growth.close()


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -1e-45, float("inf"), float("nan")])
def test_a_closed_gate_changes_no_bit_of_what_comes_another_way(value: float) -> None:
    x = torch.randn(3, requires_grad=True)
    cotangent, other = torch.full((3,), float("nan")), torch.full((3,), value)
    for open_, wanted in ((0.0, other), (1.0, other + cotangent)):
        y = gated(x, torch.tensor([open_]))
        assert torch.equal(y, x)
        (gradient,) = torch.autograd.grad((y, x * 1.0), x, (cotangent, other))
        assert gradient.numpy().tobytes() == wanted.numpy().tobytes()


@pytest.mark.parametrize("make", [Compiled, CompiledInPlace])
@pytest.mark.parametrize("cull_in", [Stage.GRAFTING, Stage.EVALUATING])
def test_a_culled_graft_costs_one_compilation_and_the_hosts_code_goes_on(
    make: type[Compiled], cull_in: Stage
) -> None:
    way = make()
    way.through(OneSeed(*way.slot, cull_in))
    host, graft = way.graphs
    assert BLEND not in operators(host) and BLEND in operators(graft)


def test_a_trial_costs_no_compilation() -> None:
    way = Compiled()
    settings = with_(FAST, measure_every=1)
    growth = way.grow(settings, OneSeed(*way.slot, Stage.TRAINING), **way.given())
    way.run(STEPS)
    growth.close()
    assert len(way.graphs) == 1
    assert len(events(growth, TrialMeasured)) > 0


def test_only_the_region_that_grows_is_compiled_again() -> None:
    way = CompiledByLayer()
    way.through(OneSeed(*way.slot, Stage.EVALUATING))
    first, second, graft = map(operators, way.graphs)
    assert "dropout" in first and "dropout" not in second + graft
    assert BLEND in graft and BLEND not in first + second


def test_what_is_tried_and_sampled_on_a_compiled_host_is_seen() -> None:
    way = Compiled()
    way.run(2)
    slots = find_slots(way.model, lambda: way.loss_fn(way.probe[0])).slots
    seed = new_seed(0, slots[way.slot[0]], LIBRARY["widen"], 0)
    with torch.no_grad():
        for parameter in seed.parameters:
            parameter.fill_(0.5)
    plain, tried = (held_out_losses(way.model, way.loss_fn, way.probe, who) for who in (None, seed))
    assert all(a != b for a, b in zip(plain, tried, strict=True))
    meters = [LayerMeter(layer) for layer in layers_of(way.model, slots.values())]
    measure(way.model, meters, way.loss_fn, way.probe[0])
    assert {m.layer.name for m in meters if m.figures().gradient > 0.0} >= {"layer1", "head"}
    assert len(way.graphs) == 1
