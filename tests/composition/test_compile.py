"""A compiled host: what grows is seen, what is only tried costs no compilation."""

from __future__ import annotations

import pytest
import torch

from esper.blueprints.library import LIBRARY
from esper.kasmina.shadow import held_out_losses
from esper.kasmina.slots import find_slots
from esper.telemetry.layers import layers_of
from esper.telemetry.meter import LayerMeter
from esper.telemetry.passes import measure
from esper.tolaria.trials import new_seed
from esper_events.events import TrialMeasured
from esper_events.stages import Stage
from support.growth_runs import FAST, OneSeed, events, stages, with_
from support.ways import STEPS, Compiled, CompiledByLayer, CompiledInPlace

BLEND = "esper.graft_blend"


def operators(graph: torch.fx.GraphModule) -> str:
    """The names of what a graph calls."""
    return " ".join(str(node.target) for node in graph.graph.nodes)


@pytest.mark.parametrize("make", [Compiled, CompiledInPlace])
def test_a_graft_and_a_fossil_are_compiled_once_each_and_all_else_never(
    make: type[Compiled],
) -> None:
    way = make()
    growth = way.through(OneSeed(*way.slot))
    assert stages(growth.records())[-1] == "fossilized"
    host, graft, fossil = way.graphs
    assert [BLEND in operators(graph) for graph in (host, graft, fossil)] == [False, True, False]
    assert len(fossil.graph.nodes) > len(host.graph.nodes)


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
