"""However the user's loop trains its host: growth fits in, and what is culled leaves no trace."""

from __future__ import annotations

import pytest
import torch

from esper.kasmina.graft import GraftedSeed
from esper_events.stages import Stage
from support.growth_runs import OneSeed, same, stages
from support.ways import STEPS, WAYS, Way


def alone(name: str) -> Way:
    """The same loop without growth."""
    way = WAYS[name]()
    way.run(STEPS)
    return way


@pytest.mark.parametrize("name", WAYS)
def test_a_seed_grows_into_the_host(name: str) -> None:
    way = WAYS[name]()
    growth = way.through(OneSeed(*way.slot))
    assert stages(growth.records())[-1] == "fossilized"
    (grown,) = [m for m in way.model.modules() if isinstance(m, GraftedSeed)]
    born = {p: p.detach().clone() for p in grown.parameters()}
    way.growth = None
    way.run(3)
    moved = [not torch.equal(p, was) for p, was in born.items()]
    assert all(moved), "the loop trains the seed on"
    parameters = [p for group in way.optimizer.param_groups for p in group["params"]]
    assert parameters == list(way.model.parameters())


@pytest.mark.parametrize("cull_in", [Stage.TRAINING, Stage.EVALUATING])
@pytest.mark.parametrize("name", WAYS)
def test_what_is_culled_leaves_no_trace(name: str, cull_in: Stage) -> None:
    way = WAYS[name]()
    growth = way.through(OneSeed(*way.slot, cull_in))
    assert cull_in.value in stages(growth.records())
    tensors, states = way.everything()
    wanted_tensors, wanted_states = alone(name).everything()
    assert same(tensors, wanted_tensors)
    assert states == wanted_states
