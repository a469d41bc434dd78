"""What controllers propose: carried out, passed over, or refused in words."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from esper.tamiyo.interface import Advance, Cull, Germinate, Observation, Plateau, Proposal
from esper_events.events import (
    GateMeasured,
    PlateauDetected,
)
from esper_events.stages import BLENDED, Gate
from support.engine_runs import (
    OUTPUT,
    SPAN,
    UP,
)
from support.growth_runs import (
    FAST,
    Loop,
    events,
    grow,
    stages,
    with_,
)


@dataclass
class Saying:
    """Proposes the same at every step."""

    proposals: list[Proposal]

    def decide(self, observation: Observation) -> list[Proposal]:
        return self.proposals


@pytest.mark.parametrize(
    ("proposal", "said"),
    [
        (Germinate("nowhere", "widen", ""), "slot 'nowhere', wanted one of layer1, head"),
        (Germinate(SPAN, "nothing", ""), "blueprint 'nothing', wanted one of low_rank"),
        (Germinate(OUTPUT, "widen", ""), "'widen' into slot 'layer1': it reads span"),
        (Germinate(SPAN, "conv2d_stack", ""), "into slot 'layer1..head': "),
        (Advance(7, ""), "names seed 7, wanted one on trial: none"),
        (Cull(7, ""), "names seed 7, wanted one on trial: none"),
    ],
)
def test_a_proposal_that_no_such_host_allows_is_refused_in_words(
    proposal: Proposal, said: str
) -> None:
    loop = Loop()
    loop.grow(FAST, Saying([proposal]))
    with pytest.raises(ValueError, match=said):
        loop.run(5)


def test_a_plateau_is_on_the_record_when_the_controller_tells_of_one() -> None:
    growth, _ = grow(FAST, Saying([Plateau(0.5)]), 10)
    told = events(growth, PlateauDetected)
    assert [(e.step, e.figures["held_out_loss"]) for e in told] == [(5, 0.5), (10, 0.5)]
    for event in told:
        layers = {name.partition("/")[2] for name in event.figures if "/" in name}
        assert layers == {"layer1", "head"}


class Hasty:
    """Germinates two seeds and asks for everything about everyone at every step."""

    def __init__(self) -> None:
        self.begun = False

    def decide(self, observation: Observation) -> list[Proposal]:
        if not self.begun:
            self.begun = True
            return [Germinate(SPAN, "widen", "one"), Germinate(SPAN, "gated_widen", "two")]
        return [Advance(seed.id, "hasty") for seed in observation.seeds for _ in range(2)]


def test_haste_puts_one_graft_at_a_time_into_the_host() -> None:
    loop = Loop()
    growth = loop.grow(FAST, Hasty())
    most = 0
    for _ in range(160):
        loop.run(1)
        assert growth.engine is not None
        most = max(most, len(growth.engine.watch.in_stages(BLENDED)))
    growth.close()
    assert most == 1
    assert stages(growth.records(), 0) == UP
    assert "evaluating" in stages(growth.records(), 1)
    assert [g.gate for g in events(growth, GateMeasured) if g.seed == 0].count(Gate.FORK) == 1


def test_a_graft_is_not_judged_before_it_is_measured() -> None:
    settings = with_(observe_every=40, evaluate_steps=5, stabilize_steps=1, embargo=3, lead=1)
    growth, _ = grow(settings, Hasty(), 400)
    forks = [g for g in events(growth, GateMeasured) if g.gate is Gate.FORK]
    assert forks
    assert all(g.figures["batches"] > 0 for g in forks)
