from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from esper.projections.lattice import (
    LatticeState,
    OpenDecision,
    ProjectionError,
    SeedState,
    fold,
    fold_all,
)
from esper.projections.words import lattice_words
from esper_events.events import (
    BreakerChanged,
    Event,
    Record,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
)
from esper_events.stages import Stage, is_legal
from support.event_runs import UP, folded, lattice
from support.growth_runs import FAST, OneSeed, grow

ROOT = Path(__file__).resolve().parents[2]
SLOTS = ("fc", "head")


def decided(
    number: int, source: Stage, target: Stage, seed: int = 0, slot: str = "fc", body: str = "b"
) -> TransitionDecided:
    return TransitionDecided(
        time=0.0,
        decision=number,
        step=1,
        at_step=2,
        seed=seed,
        slot=slot,
        blueprint=body,
        source=source,
        target=target,
        reason="",
    )


def applied(number: int, weights: str = "w") -> TransitionApplied:
    return TransitionApplied(time=0.0, decision=number, step=2, seed_weights=weights)


def lapsed(number: int) -> TransitionLapsed:
    return TransitionLapsed(time=0.0, decision=number, step=2, reason="")


def records(*events: Event) -> list[Record]:
    return [Record(index, event) for index, event in enumerate((lattice(*SLOTS), *events))]


FOSSIL = tuple(
    event
    for number, (source, target) in enumerate(pairwise(UP))
    for event in (decided(number, source, target), applied(number))
)
GERMINATED = (decided(0, Stage.DORMANT, Stage.GERMINATED), applied(0))


def test_a_seed_keeps_the_objective_of_its_germination() -> None:
    germination, move = GERMINATED
    local = msgspec.structs.replace(germination, objective="next_layer")
    training = decided(1, Stage.GERMINATED, Stage.TRAINING), applied(1)
    state = fold_all(records(local, move, *training))
    assert state.seeds[0].objective == "next_layer"
    assert "objective next_layer" in lattice_words(state)[1]
    shadow = fold_all(records(*GERMINATED, *training))
    assert state.digest() != shadow.digest()
    assert "objective" not in msgspec.to_builtins(shadow.seeds[0]), "as logs of before fold"


def test_a_real_run_folds_to_the_state_of_its_lattice() -> None:
    growth, _ = grow(FAST, OneSeed("layer1..head", "widen", cull_in=None), steps=120)
    log = growth.records()
    state = fold_all(log)
    engine = growth.engine
    assert engine is not None
    assert state.slots == tuple(engine.lattice.map.slots)
    assert [number for number, _ in state.fossils()] == [0]
    assert state.open == {}
    assert state == engine.state(len(log))


def test_a_fold_from_the_middle_equals_one_from_the_start_at_every_index() -> None:
    growth, _ = grow(FAST, OneSeed("layer1..head", "widen", cull_in=Stage.GRAFTING), steps=60)
    log = growth.records()
    whole = fold_all(log)
    state = LatticeState()
    for index, record in enumerate(log):
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=LatticeState)
        assert fold_all(log[index:], again) == whole
        assert again.digest() == fold_all(log[:index]).digest() == state.digest()
        state = fold(state, record)
    assert state.digest() == whole.digest()


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ((decided(0, Stage.DORMANT, Stage.GERMINATED, slot="?"),), "the unknown slot '?'"),
        (
            (decided(3, Stage.DORMANT, Stage.GERMINATED),) * 2,
            "decision 3 was made twice",
        ),
        ((applied(4),), "decision 4 is settled, but it is not open"),
        ((lapsed(4),), "decision 4 is settled, but it is not open"),
        ((*GERMINATED, applied(0)), "decision 0 is settled, but it is not open"),
        (
            (*GERMINATED, decided(1, Stage.TRAINING, Stage.GRAFTING), applied(1)),
            "takes seed 0 from training to grafting, but it is germinated",
        ),
        (
            (*GERMINATED, decided(1, Stage.GERMINATED, Stage.GRAFTING), applied(1)),
            "takes seed 0 from germinated to grafting, but it is germinated",
        ),
        (
            (*GERMINATED, decided(1, Stage.GERMINATED, Stage.TRAINING, slot="head"), applied(1)),
            "moves seed 0 to slot 'head'",
        ),
        (
            (*GERMINATED, decided(1, Stage.GERMINATED, Stage.TRAINING, body="c"), applied(1)),
            "another blueprint; it is in 'fc'",
        ),
        ((*GERMINATED, folded(0)), "wanted a fossil there"),
        ((*FOSSIL, folded(0, "head")), "wanted a fossil there"),
        ((*FOSSIL, folded(0), folded(0)), "folded a second time"),
    ],
)
def test_what_no_trainer_could_have_written_is_refused(
    events: tuple[Event, ...], said: str
) -> None:
    with pytest.raises(ProjectionError, match=said):
        fold_all(records(*events))


@pytest.mark.parametrize("index", [0, 2])
def test_a_gap_or_a_repeat_in_the_log_is_refused(index: int) -> None:
    with pytest.raises(ProjectionError, match=f"got record {index}, wanted 1: a gap"):
        fold(fold_all(records()), Record(index, lattice(*SLOTS)))


def test_an_illegal_decision_that_lapses_does_no_harm() -> None:
    state = fold_all(records(decided(0, Stage.DORMANT, Stage.FOSSILIZED), lapsed(0)))
    assert (state.seeds, state.open, state.lapsed) == ({}, {}, 1)


def test_events_about_other_things_leave_the_digest_alone() -> None:
    other = BreakerChanged(time=0.0, step=1, breaker="log", state="open", reason="")
    state = fold_all(records(*GERMINATED))
    later = fold(state, Record(state.records, other))
    assert later.records == state.records + 1
    assert later.digest() == state.digest()


def test_a_folded_seed_is_marked_and_the_digest_tells() -> None:
    before, after = fold_all(records(*FOSSIL)), fold_all(records(*FOSSIL, folded(0)))
    assert after.folded == {0: "after"}
    assert after.seeds == before.seeds
    assert after.digest() != before.digest()
    assert any("folded into a module" in line for line in lattice_words(after))


def test_the_digest_tells_every_part_apart_and_no_order_of_filling() -> None:
    seed = SeedState("fc", "b", Stage.TRAINING, "w")
    entry = OpenDecision(1, "fc", "b", Stage.TRAINING, Stage.GRAFTING)
    base = LatticeState(3, SLOTS, {1: seed, 2: seed, 10: seed}, {4: entry, 3: entry}, 1)
    turned = LatticeState(3, SLOTS, {10: seed, 2: seed, 1: seed}, {3: entry, 4: entry}, 1)
    assert base.digest() == turned.digest()
    different = [
        msgspec.structs.replace(base, slots=("head", "fc")),
        msgspec.structs.replace(base, seeds={1: seed, 2: seed}),
        msgspec.structs.replace(base, seeds={**base.seeds, 2: SeedState("fc", "b", Stage.CULLED)}),
        msgspec.structs.replace(base, open={4: entry}),
        msgspec.structs.replace(base, lapsed=2),
    ]
    assert len({state.digest() for state in (base, *different)}) == len(different) + 1


def test_the_digest_is_the_same_in_every_process() -> None:
    code = (
        "from esper.projections.lattice import *\n"
        "from esper_events.stages import Stage\n"
        "one = SeedState('fc', 'b', Stage.TRAINING, 'w')\n"
        "seeds = {n: one for n in {'x': 3, 'y': 1, 'z': 2}.values()}\n"
        "print(LatticeState(1, tuple({'fc': 1, 'head': 2}), seeds, {}, 1).digest())\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "events")])
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": salt},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for salt in ("0", "1", "4711")
    }
    assert len(told) == 1


class LatticeMachine(RuleBasedStateMachine):
    """The fold against a plain model, over legal and illegal histories."""

    def __init__(self) -> None:
        super().__init__()
        self.state = fold_all(records())
        self.log = records()
        self.stages: dict[int, Stage] = {}
        self.open: dict[int, TransitionDecided] = {}
        self.made = 0
        self.lapsed = 0

    def fold(self, event: Event) -> None:
        record = Record(len(self.log), event)
        self.state = fold(self.state, record)
        self.log.append(record)

    def refused(self, event: Event) -> None:
        before = self.state
        with pytest.raises(ProjectionError):
            fold(self.state, Record(len(self.log), event))
        assert self.state is before

    @rule(
        seed=st.integers(0, 2),
        origin=st.sampled_from(Stage),
        goal=st.sampled_from(Stage),
        legal=st.booleans(),
    )
    def decide(self, seed: int, origin: Stage, goal: Stage, legal: bool) -> None:
        if legal:
            origin = self.stages.get(seed, Stage.DORMANT)
            ways = [stage for stage in Stage if is_legal(origin, stage)]
            goal = ways[0] if ways else goal
        event = decided(self.made, origin, goal, seed, SLOTS[seed % 2])
        self.fold(event)
        self.open[self.made] = event
        self.made += 1
        self.refused(event)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), weights=st.sampled_from(["", "w"]))
    def settle(self, data: st.DataObject, weights: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        event = self.open[number]
        stage = self.stages.get(event.seed, Stage.DORMANT)
        if stage is event.source and is_legal(stage, event.target):
            self.fold(applied(number, weights))
            self.stages[event.seed] = event.target
        else:
            self.refused(applied(number))
            self.fold(lapsed(number))
            self.lapsed += 1
        del self.open[number]

    @rule(number=st.integers(0, 30))
    def settle_what_is_not_open(self, number: int) -> None:
        if number not in self.open:
            self.refused(applied(number))
            self.refused(lapsed(number))

    @invariant()
    def the_fold_tells_what_the_model_tells(self) -> None:
        assert {n: seed.stage for n, seed in self.state.seeds.items()} == self.stages
        assert set(self.state.open) == set(self.open)
        assert self.state.lapsed == self.lapsed
        assert self.state.records == len(self.log)
        assert fold_all(self.log) == self.state


LatticeMachine.TestCase.settings = hypothesis_settings(
    max_examples=50, stateful_step_count=30, deadline=None
)
TestLatticeMachine = LatticeMachine.TestCase
