from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from esper.kasmina.digest import model_digest
from esper.log.memory import MemoryStore
from esper.projections.lattice import fold_all
from esper.tamiyo.interface import Advance, Cull, Germinate, Observation, Plateau, Proposal
from esper.tolaria.growth import Growth
from esper.tolaria.trials import Trial
from esper_events.events import (
    BreakerChanged,
    GateMeasured,
    PlateauDetected,
    RunEnded,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
    TrialMeasured,
)
from esper_events.stages import BLENDED, Gate, Stage
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

SPAN, OUTPUT = "layer1..head", "layer1"
UP = ["germinated", "training", "grafting", "stabilizing", "evaluating", "fossilized"]
DOWN = ["culled", "embargoed", "dormant"]
RESTLESS: dict[str, Any] = {"dropout": 0.3, "batchnorm": True}


def widen(cull_in: Stage | None = None, **more: object) -> OneSeed:
    return OneSeed(SPAN, "widen", cull_in, **more)  # type: ignore[arg-type]


def culls(growth: Growth) -> list[tuple[str, str]]:
    """Reason and manner of every cull that was decided."""
    decided = events(growth, TransitionDecided)
    return [(d.reason, d.removal) for d in decided if d.target is Stage.CULLED]


def trial(growth: Growth) -> Trial:
    """The one trial under way."""
    assert growth.engine is not None
    (found,) = growth.engine.trials.values()
    return found


def stage_of(growth: Growth) -> Stage:
    assert growth.engine is not None
    return growth.engine.lattice.stage(trial(growth).seed.id)


def in_stage(growth: Growth, stage: Stage) -> bool:
    return growth.engine is not None and bool(growth.engine.watch.in_stages(frozenset({stage})))


def run_until(loop: Loop, growth: Growth, condition: Callable[[], bool]) -> None:
    for _ in range(300):
        if condition():
            return
        loop.run(1)
    pytest.fail("it never came to that")


def hooks(loop: Loop) -> int:
    return len(loop.optimizer._optimizer_step_post_hooks)


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


@pytest.mark.parametrize("bad", [1e9, math.nan, math.inf])
def test_an_exploding_loss_brings_the_fork_back(bad: float) -> None:
    loop = Loop()
    growth = loop.grow(with_(lead=4), widen())
    run_until(loop, growth, lambda: bool(growth.engine and growth.engine.transitions.fork))
    loop.run(3)
    loop.run(1, lambda _, loss: torch.tensor(bad))
    loop.run(90 - loop.steps)
    growth.close()
    ((reason, removal), *_) = culls(growth)
    assert reason == f"training loss exploded to {bad:g}"
    assert removal == "fork"
    assert "stabilizing" not in stages(growth.records())
    assert same(bits(loop), plain(90))


def test_an_explosion_overrules_a_fossilization_under_way() -> None:
    loop = Loop()
    growth = loop.grow(with_(lead=10), widen())
    engine = growth.engine
    assert engine is not None
    run_until(loop, growth, lambda: engine.decisions.heading(0, Stage.FOSSILIZED))
    loop.run(1, lambda _, loss: math.nan)
    loop.run(20)
    growth.close()
    assert "fossilized" not in stages(growth.records())
    assert "training loss exploded to nan" in [e.reason for e in events(growth, TransitionLapsed)]
    assert same(bits(loop), plain(loop.steps))


def test_a_loss_below_zero_is_no_explosion() -> None:
    loop = Loop()
    growth = loop.grow(FAST, widen())
    loop.run(120, lambda _, loss: loss - 100.0)
    growth.close()
    assert stages(growth.records()) == UP


def break_weights(seed_trial: Trial) -> None:
    with torch.no_grad():
        for parameter in seed_trial.seed.parameters:
            parameter.fill_(math.nan)


def break_forward(seed_trial: Trial) -> None:
    def fail(*_: Tensor) -> Tensor:
        raise RuntimeError("shapes do not fit")

    seed_trial.seed.body.forward = fail


def break_evaluation(seed_trial: Trial) -> None:
    def fail(body: torch.nn.Module, _: object) -> None:
        if not torch.is_grad_enabled():
            raise IndexError("a batch of another size")

    seed_trial.seed.body.register_forward_pre_hook(fail)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_weights, "its shadow loss is nan"),
        (break_forward, "its shadow pass failed: shapes do not fit"),
        (break_evaluation, "its measurement failed: a batch of another size"),
    ],
)
def test_a_seed_that_breaks_in_the_shadow_is_culled_and_training_goes_on(
    damage: Callable[[Trial], None], said: str
) -> None:
    loop = Loop()
    growth = loop.grow(FAST, widen())
    run_until(loop, growth, lambda: in_stage(growth, Stage.TRAINING))
    damage(trial(growth))
    loop.run(60 - loop.steps)
    growth.close()
    assert culls(growth) == [(said, "removed")]
    assert same(bits(loop), plain(60))


@pytest.mark.parametrize("lead", [1, 2, 12])
def test_a_seed_that_breaks_on_its_way_into_the_host_never_arrives(lead: int) -> None:
    loop = Loop()
    growth = loop.grow(with_(lead=lead), widen())
    engine = growth.engine
    assert engine is not None
    run_until(loop, growth, lambda: engine.decisions.heading(0, Stage.GRAFTING))
    break_weights(trial(growth))
    loop.run(80 - loop.steps)
    growth.close()
    assert "grafting" not in stages(growth.records())
    assert culls(growth) == [("its shadow loss is nan", "removed")]
    assert "its shadow loss is nan" in [e.reason for e in events(growth, TransitionLapsed)]
    assert same(bits(loop), plain(80))


def test_a_seed_that_fails_its_isolation_check_is_refused_for_good() -> None:
    loop = Loop()
    growth = loop.grow(FAST, widen())
    run_until(loop, growth, lambda: bool(growth.engine and growth.engine.trials))
    break_forward(trial(growth))
    loop.run(40)
    growth.close()
    ((reason, removal),) = culls(growth)
    assert "shapes do not fit" in reason
    assert removal == "removed"
    assert stages(growth.records()) == ["germinated", *DOWN]


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
    growth, loop = grow(with_(evaluate_steps=40), widen(again=True), 200, seed=2)
    fossils = growth.fossils
    assert len(fossils) >= 2
    assert {trial.seed.slot.id for trial in fossils} == {SPAN}
    assert len({id(p) for p in loop.model.parameters()}) == 4 + 4 * len(fossils)
    assert growth.seed_rows()[0].stage is Stage.FOSSILIZED


class Failing(MemoryStore):
    """A disk that is full after ``good`` segments."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.good = good

    def append(self, position: int, segment: bytes) -> None:
        if position >= self.good:
            raise OSError(28, "No space left on device")
        super().append(position, segment)


@pytest.mark.parametrize("sync", [True, False])
def test_a_failed_journal_stops_growth_and_not_training(
    sync: bool, caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop()
    growth = loop.grow(with_(sync_decisions=sync), widen(again=True), Failing(0))
    loop.run(80)
    summary = growth.close()
    engine = growth.engine
    assert engine is not None
    assert (summary.events, summary.segments, growth.records()) == (0, 0, [])
    assert isinstance(growth.log.failure, OSError)
    assert "failed, so its record ends after 0 events: [Errno 28] No space left" in caplog.text
    assert engine.decisions.lapsed >= 3
    assert engine.lattice.seeds == {}
    assert same(bits(loop), plain(80))


def test_a_journal_that_fails_during_a_graft_leaves_model_and_log_in_step() -> None:
    store = Failing(10**9)
    loop = Loop()
    growth = loop.grow(FAST, widen(), store)
    run_until(loop, growth, lambda: in_stage(growth, Stage.GRAFTING))
    assert growth.log.flush(10)
    store.good = 0
    loop.run(100 - loop.steps)
    growth.close()
    # No change without the log: the seed stays where the record leaves it, its fork is let go.
    assert stages(growth.records())[-1] in ("grafting", "stabilizing")
    assert fold_all(growth.records()).seeds[0].stage is stage_of(growth)
    assert events(growth, RunEnded) == []
    assert hooks(loop) == 0


class Hanging(MemoryStore):
    """A disk that answers while ``open`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()

    def append(self, position: int, segment: bytes) -> None:
        self.open.wait(30)
        super().append(position, segment)


def test_a_disk_that_hangs_opens_the_breaker_until_it_answers() -> None:
    store = Hanging()
    settings = with_(sync_decisions=False, ack_timeout=0.02, breaker_cooldown=20, breaker_limit=2)
    loop = Loop()
    growth = loop.grow(settings, widen(again=True), store)
    assert growth.log.flush(10)
    store.open.clear()
    loop.run(10)
    engine = growth.engine
    assert engine is not None
    for _ in range(40):
        loop.run(5)
        threading.Event().wait(0.01)
        if engine.decisions.lapsed >= 2:
            break
    lapsed = engine.decisions.lapsed
    loop.run(15)
    assert (engine.decisions.lapsed, engine.lattice.seeds) == (lapsed, {})  # Nothing was tried.
    store.open.set()
    assert growth.log.flush(10)
    for _ in range(60):
        loop.run(5)
        assert growth.log.flush(10)
        if engine.lattice.seeds:
            break
    growth.close()
    states = [e.state for e in events(growth, BreakerChanged)]
    assert states[:1] == ["open"]
    assert states[-2:] == ["half-open", "closed"]
    assert "germinated" in stages(growth.records(), max(engine.lattice.seeds))


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
    told = [(e.step, e.figures) for e in events(growth, PlateauDetected)]
    assert told == [(5, {"held_out_loss": 0.5}), (10, {"held_out_loss": 0.5})]


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


def test_a_host_that_nothing_grows_in_is_trained_as_ever() -> None:
    growth, loop = grow(FAST, Asleep(), 60, **RESTLESS)
    assert same(bits(loop), plain(60, **RESTLESS))
    assert stages(growth.records()) == []
