"""The life of a seed, from its germination to its end."""

from __future__ import annotations

import pytest
import torch

from esper.kasmina.digest import model_digest
from esper.projections.lattice import fold_all
from esper_events.events import (
    GateMeasured,
    PlateauDetected,
    RunEnded,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
    TrialMeasured,
)
from esper_events.stages import Gate, Stage
from support.engine_runs import (
    DOWN,
    RESTLESS,
    SPAN,
    UP,
    culls,
    hooks,
    in_stage,
    run_until,
    widen,
)
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


def test_a_useful_seed_goes_through_every_stage_and_stays() -> None:
    loop = Loop()
    model, optimizer, group = loop.model, loop.optimizer, loop.optimizer.param_groups[0]
    before = list(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    growth = loop.grow(FAST, widen())
    losses = []
    alphas = []
    for _ in range(120):
        loop.run(1)
        scheduler.step()
        alphas += [row.alpha for row in growth.seed_rows()]
        losses.append(float(loop.loss_fn(loop.batches[0]).detach()))
    growth.close()
    assert stages(growth.records()) == UP
    (fossil,) = growth.fossils
    assert fossil.seed.blueprint == events(growth, TransitionDecided)[0].blueprint
    assert losses[-1] < 0.5 * min(losses[:10])
    blend = [alpha for alpha in alphas if 0.0 < alpha < 1.0]
    assert blend == sorted(blend)
    assert len(blend) == FAST.blend_steps - 1
    assert alphas[-1] == 1.0
    # The user's own objects, in their old order, with the seed's parameters behind them.
    assert (growth.model, growth.optimizer) == (model, optimizer)
    assert optimizer.param_groups == [group]
    assert all(a is b for a, b in zip(before, group["params"], strict=False))
    added = group["params"][len(before) :]
    assert {id(p) for p in added} == {id(p) for p in fossil.seed.parameters}
    assert {id(p) for p in model.parameters()} == {id(p) for p in group["params"]}
    assert all(optimizer.state[p]["step"] > 50 for p in added)
    assert hooks(loop) == 0


def test_the_gates_of_a_whole_life_are_on_the_record() -> None:
    growth, _ = grow(FAST, widen(), 120)
    gates = [(g.gate, g.passed) for g in events(growth, GateMeasured)]
    assert gates == [
        (gate, True)
        for gate in (
            Gate.GERMINATION,
            Gate.ISOLATION,
            Gate.SHADOW,
            Gate.BLEND,
            Gate.STABILITY,
            Gate.FORK,
        )
    ]
    decided, applied = events(growth, TransitionDecided), events(growth, TransitionApplied)
    assert [a.step for a in applied] == [d.at_step for d in decided]
    assert all(d.at_step - d.step == FAST.lead for d in decided)
    assert len(events(growth, TrialMeasured)) >= 1
    assert events(growth, PlateauDetected) == []


@pytest.mark.parametrize("cull_in", [Stage.GERMINATED, Stage.TRAINING])
@pytest.mark.parametrize("slot", [("layer1..head", "widen"), ("norm1", "bottleneck_mlp")])
def test_a_seed_that_was_never_grafted_leaves_no_trace(
    cull_in: Stage, slot: tuple[str, str]
) -> None:
    growth, loop = grow(FAST, OneSeed(*slot, cull_in), 60, **RESTLESS)
    assert stages(growth.records())[-3:] == DOWN
    assert culls(growth) == [("as told", "removed")]
    assert same(bits(loop), plain(60, **RESTLESS))


@pytest.mark.parametrize("cull_in", [Stage.GRAFTING, Stage.STABILIZING, Stage.EVALUATING])
@pytest.mark.parametrize("slot", [("layer1..head", "widen"), ("norm1", "bottleneck_mlp")])
def test_after_a_graft_the_fork_goes_on_as_if_there_had_been_none(
    cull_in: Stage, slot: tuple[str, str]
) -> None:
    growth, loop = grow(FAST, OneSeed(*slot, cull_in), 100, **RESTLESS)
    assert stages(growth.records())[-4:] == [cull_in.value, *DOWN]
    assert culls(growth) == [("as told", "fork")]
    assert same(bits(loop), plain(100, **RESTLESS))
    assert hooks(loop) == 0


def test_a_gate_that_refuses_for_good_ends_the_graft() -> None:
    growth, loop = grow(with_(min_effect=1.0), widen(), 120)
    (fork,) = [g for g in events(growth, GateMeasured) if g.gate is Gate.FORK]
    assert not fork.passed
    assert culls(growth) == [(fork.reason, "fork")]
    assert fork.figures["fork_steps"] >= FAST.blend_steps + FAST.evaluate_steps
    assert same(bits(loop), plain(120))


def test_a_graft_outside_its_band_ends_when_it_is_overdue() -> None:
    growth, loop = grow(with_(stability_band=1e-9), widen(), 100)
    gates = [g for g in events(growth, GateMeasured) if g.gate is Gate.STABILITY]
    assert len(gates) == 3
    assert not any(g.passed for g in gates)
    assert culls(growth) == [("held-out loss is outside its band", "fork")]
    assert same(bits(loop), plain(100))


def test_a_shadow_gate_that_never_opens_leaves_the_seed_to_the_controller() -> None:
    growth, loop = grow(with_(shadow_confidence=1.0), widen(), 60)
    gates = [g for g in events(growth, GateMeasured) if g.gate is Gate.SHADOW]
    measured = events(growth, TrialMeasured)
    assert len(gates) == len(measured)  # Asked once for each new measurement.
    assert not any(g.passed for g in gates)
    assert culls(growth) == [("the run ended", "removed")]
    assert same(bits(loop), plain(60))


def test_an_embargo_keeps_its_slot_free_for_as_long_as_configured() -> None:
    controller = widen(Stage.TRAINING, again=True)
    growth, _ = grow(FAST, controller, 100)
    decided = {d.decision: d for d in events(growth, TransitionDecided)}
    applied = [(a.step, decided[a.decision]) for a in events(growth, TransitionApplied)]
    entered = {(d.seed, d.target): step for step, d in applied}
    assert entered[0, Stage.DORMANT] - entered[0, Stage.EMBARGOED] == FAST.embargo
    # Asked meanwhile, the gate refuses; afterwards the same slot takes a seed again.
    refused = [g for g in events(growth, GateMeasured) if not g.passed]
    assert refused
    assert {g.reason for g in refused} == {"the slot holds a graft or is cooling down"}
    assert all(entered[0, Stage.CULLED] <= g.step <= entered[0, Stage.DORMANT] for g in refused[:2])
    later = [step for (seed, stage), step in entered.items() if seed and stage is Stage.GERMINATED]
    assert min(later) > entered[0, Stage.DORMANT]


def test_an_embargoed_slot_is_no_candidate() -> None:
    controller = widen(Stage.TRAINING)
    grow(with_(embargo=40), controller, 120)
    quiet = [o for o in controller.seen if not o.seeds]
    offers = [(o.step, SPAN in {c.slot for c in o.candidates}) for o in quiet]
    cooling = [step for step, offered in offers if not offered]
    assert [offered for _, offered in offers][:1] == [True]
    assert [offered for _, offered in offers][-1:] == [True]
    assert 35 <= max(cooling) - min(cooling) <= 50


def test_fossils_stack_in_one_slot() -> None:
    growth, loop = grow(with_(evaluate_steps=40), widen(again=True), 300, seed=0)
    fossils = growth.fossils
    assert len(fossils) >= 2
    assert {trial.seed.slot.id for trial in fossils} == {SPAN}
    assert len({id(p) for p in loop.model.parameters()}) == 4 + 4 * len(fossils)
    assert growth.seed_rows()[0].stage is Stage.FOSSILIZED


@pytest.mark.parametrize("stage", ["training", "grafting", "stabilizing", "evaluating"])
def test_what_is_on_trial_when_the_run_ends_leaves(stage: str) -> None:
    loop = Loop(**RESTLESS)
    growth = loop.grow(FAST, widen())
    run_until(loop, growth, lambda: in_stage(growth, Stage(stage)))
    growth.close()
    removal = "removed" if stage == "training" else "fork"
    assert culls(growth) == [("the run ended", removal)]
    assert same(bits(loop), plain(loop.steps, **RESTLESS))
    assert hooks(loop) == 0
    assert growth.seed_rows() == []


@pytest.mark.parametrize("cull_in", [None, Stage.TRAINING, Stage.EVALUATING])
def test_the_running_lattice_is_what_its_log_tells(cull_in: Stage | None) -> None:
    growth, loop = grow(FAST, widen(cull_in, again=True), 150)
    log = growth.records()
    (ended,) = events(growth, RunEnded)
    assert isinstance(log[-1].event, RunEnded)
    assert ended.lattice == fold_all(log[:-1]).digest() == growth.state(0).digest()
    assert ended.final_weights == model_digest(loop.model)
    assert (ended.outcome, ended.step) == ("completed", 150)
    settled = [
        e.decision for e in (*events(growth, TransitionApplied), *events(growth, TransitionLapsed))
    ]
    assert sorted(settled) == [d.decision for d in events(growth, TransitionDecided)]


def test_a_host_that_nothing_grows_in_is_trained_as_ever() -> None:
    growth, loop = grow(FAST, Asleep(), 60, **RESTLESS)
    assert same(bits(loop), plain(60, **RESTLESS))
    assert stages(growth.records()) == []
