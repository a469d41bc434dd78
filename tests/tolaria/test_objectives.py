"""Seeds with local objectives in whole runs: chosen, on record, judged by the same gates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

import pytest

from esper.kasmina.digest import model_digest
from esper.kasmina.errors import ObjectiveError
from esper.projections.lattice import fold_all
from esper.tamiyo.interface import Advance, Germinate, Observation, Proposal
from esper.tolaria import passes
from esper.tolaria.logged import from_records
from esper_events.events import GateMeasured, LocalObjective, Objective, TransitionDecided
from esper_events.stages import Gate, Stage
from support.engine_runs import OUTPUT, RESTLESS, SPAN, UP, culls
from support.growth_runs import (
    FAST,
    Asleep,
    Loop,
    OneSeed,
    bits,
    events,
    grow,
    plain,
    same,
    stages,
    with_,
)

LOCAL: tuple[LocalObjective, ...] = get_args(LocalObjective)


def one(objective: Objective, slot: str = OUTPUT, **more: Any) -> OneSeed:
    return OneSeed(slot, "low_rank", objective=objective, **more)


@dataclass
class Everything:
    """Germinates one seed of each of some objectives, and lets them train to the end."""

    objectives: tuple[Objective, ...]
    seen: list[Observation] = field(default_factory=list)

    def decide(self, observation: Observation) -> list[Proposal]:
        """Germinate at first, then begin the trials, and no more."""
        self.seen.append(observation)
        if len(self.seen) == 1:
            return [Germinate(OUTPUT, "low_rank", "as told", o) for o in self.objectives]
        born = [seed for seed in observation.seeds if seed.stage is Stage.GERMINATED]
        return [Advance(seed.id, "as told") for seed in born if seed.ready and not seed.pending]


@pytest.mark.parametrize("objective", get_args(Objective))
def test_a_run_is_trained_again_to_the_same_bits_by_the_objective_in_its_log(
    objective: Objective,
) -> None:
    settings = with_(shadow_confidence=1e-9, record_every=10)
    growth, loop = grow(settings, one(objective), 100, **RESTLESS)
    records = growth.records()
    assert stages(records)[: len(UP)] == UP
    (germination, *rest) = events(growth, TransitionDecided)
    assert (germination.objective or "shadow") == objective
    assert not any(decided.objective for decided in rest)
    (seed,) = fold_all(records).seeds.values()
    assert (seed.objective or "shadow") == objective
    assert fold_all(records).digest() == growth.state(0).digest()

    again = Loop(**RESTLESS)
    followed = again.grow(settings, Asleep(), rerun=from_records(records))
    again.run(100)
    report = followed.rerun_report()
    assert report.identical, report.difference
    assert report.final_weights == model_digest(loop.model)


@pytest.mark.parametrize("other", LOCAL)
def test_what_a_seed_has_learnt_depends_on_its_objective(other: LocalObjective) -> None:
    def weights(objective: Objective) -> str:
        growth, _ = grow(FAST, one(objective, cull_in=Stage.GRAFTING), 60)
        (seed, *_) = fold_all(growth.records()).seeds.values()
        return seed.weights

    assert weights(other) != weights("shadow")


def test_a_host_beside_seeds_of_every_objective_keeps_its_bits_and_the_pass_is_one() -> None:
    def run(objectives: tuple[Objective, ...], steps: int) -> tuple[Loop, int]:
        loop = Loop(**RESTLESS)
        growth = loop.grow(with_(measure_every=50, observe_every=5), Everything(objectives))
        loop.run(61)
        before = loop.evaluations
        loop.run(1)
        passes = loop.evaluations - before
        loop.run(steps - 62)
        growth.close()
        assert culls(growth) == [("the run ended", "removed")] * len(objectives)
        return loop, passes

    several, passes_of_a_step = run((*LOCAL, *LOCAL), 200)
    assert passes_of_a_step == 2, "the host's own, and one for all seeds"
    assert same(bits(several), plain(200, **RESTLESS))
    assert run(("shadow", *LOCAL), 70)[1] == 3


def test_the_controller_sees_each_objective() -> None:
    controller = Everything(("next_layer", "shadow"))
    loop = Loop()
    loop.grow(FAST, controller)
    loop.run(30)
    assert [seed.objective for seed in controller.seen[-1].seeds] == ["next_layer", "shadow"]


def test_a_next_layer_that_cannot_be_run_by_itself_is_refused_at_the_germination_gate() -> None:
    growth, _ = grow(FAST, OneSeed(SPAN, "widen", objective="next_layer"), 20)
    (answer,) = events(growth, GateMeasured)
    assert (answer.gate, answer.passed) == (Gate.GERMINATION, False)
    assert "the layer after slot 'layer1..head' cannot be run by itself" in answer.reason
    assert events(growth, TransitionDecided) == []


def test_the_shadow_gate_judges_a_seed_whatever_it_learnt_from() -> None:
    """A copy of the layer's own output is nothing that the host could use: it stays outside."""
    settings = with_(shadow_confidence=0.95)
    seed = OneSeed(SPAN, "widen", objective="reconstruction")
    growth, loop = grow(settings, seed, 120)
    asked = [gate for gate in events(growth, GateMeasured) if gate.gate is Gate.SHADOW]
    assert asked
    assert not any(gate.passed for gate in asked)
    assert same(bits(loop), plain(120))


def test_an_objective_that_nobody_knows_is_the_controllers_mistake() -> None:
    with pytest.raises(
        ValueError, match="objective 'foo', wanted one of shadow, reconstruction, negative_grad"
    ):
        grow(FAST, one("foo"), 20)  # type: ignore[arg-type]


def test_a_seed_that_cannot_learn_is_culled_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any) -> list[float | Exception]:
        return [ObjectiveError("there is nothing to learn")]

    monkeypatch.setattr(passes, "local_step", fails)
    growth, loop = grow(FAST, one("negative_gradient"), 60)
    assert culls(growth) == [("its shadow pass failed: there is nothing to learn", "removed")]
    assert same(bits(loop), plain(60))
