"""The compiled slot table and alpha schedule, against the one table in ``esper_events``."""

from __future__ import annotations

import itertools
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from esper.kasmina._lattice import (
    STAGES,
    TRANSITIONS,
    AlphaSchedule,
    IllegalTransition,
    SlotTable,
    UnknownSeed,
)
from esper_events import stages
from esper_events.stages import Stage

ORDER = list(Stage)


def path_to(target: Stage) -> list[Stage]:
    """A shortest legal life that ends in ``target``."""
    waiting = deque([[Stage.DORMANT]])
    while waiting:
        path = waiting.popleft()
        if path[-1] is target:
            return path[1:]
        waiting.extend([*path, t.target] for t in stages.TRANSITIONS if t.source is path[-1])
    raise LookupError(target)


def seed_at(stage: Stage) -> SlotTable:
    table = SlotTable()
    table.add_seed(1, "encoder.0")
    for step in path_to(stage):
        table.advance(1, ORDER.index(step))
    return table


def test_stages_and_transitions_are_those_of_the_contract() -> None:
    assert tuple(stage.value for stage in Stage) == STAGES
    pairs = {(ORDER[source], ORDER[target]) for source, target in TRANSITIONS}
    assert pairs == {(t.source, t.target) for t in stages.TRANSITIONS}
    assert len(TRANSITIONS) == len(stages.TRANSITIONS)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(Stage, Stage)))
def test_every_pair_of_stages(source: Stage, target: Stage) -> None:
    table = seed_at(source)
    if stages.is_legal(source, target):
        table.advance(1, ORDER.index(target))
        assert table.stage(1) == ORDER.index(target)
    else:
        message = f"seed 1 cannot go from '{source.value}' to '{target.value}'"
        with pytest.raises(IllegalTransition, match=message):
            table.advance(1, ORDER.index(target))
        assert table.stage(1) == ORDER.index(source)


def test_a_blend_runs_from_zero_to_one_and_stays() -> None:
    table = seed_at(Stage.GRAFTING)
    table.tick()
    assert table.alpha(1) == 0.0
    table.start_blend(1, AlphaSchedule(4))
    values = []
    for _ in range(7):
        values.append(table.alpha(1))
        table.tick()
    assert values[0] == 0.0 and values[4:] == [1.0, 1.0, 1.0]
    assert values == sorted(values)
    for stage in (Stage.STABILIZING, Stage.EVALUATING, Stage.FOSSILIZED):
        table.advance(1, ORDER.index(stage))
        assert table.alpha(1) == 1.0


def test_a_cull_ends_the_blend() -> None:
    table = seed_at(Stage.GRAFTING)
    table.start_blend(1, AlphaSchedule(1))
    table.tick()
    assert table.alpha(1) == 1.0
    table.advance(1, ORDER.index(Stage.CULLED))
    assert table.alpha(1) == 0.0


def test_a_blend_starts_once_and_in_grafting_only() -> None:
    for stage in set(Stage) - {Stage.GRAFTING}:
        with pytest.raises(ValueError, match=f"'{stage.value}', a blend starts in 'grafting'"):
            seed_at(stage).start_blend(1, AlphaSchedule(4))
    table = seed_at(Stage.GRAFTING)
    table.start_blend(1, AlphaSchedule(4))
    with pytest.raises(ValueError, match="already started"):
        table.start_blend(1, AlphaSchedule(4))


def test_refusals() -> None:
    table = seed_at(Stage.DORMANT)
    with pytest.raises(ValueError, match="seed 1 is already in slot 'encoder.0'"):
        table.add_seed(1, "decoder")
    with pytest.raises(UnknownSeed, match="no seed 2"):
        table.stage(2)
    with pytest.raises(KeyError):
        table.advance(2, 1)
    for position in (-1, len(STAGES)):
        with pytest.raises(ValueError, match=f"got stage {position}, wanted a position"):
            table.advance(1, position)


@given(
    steps=st.integers(1, 3000),
    midpoint=st.none() | st.floats(0.0, 1.0),
    temperature=st.none() | st.floats(0.01, 10.0),
)
def test_a_schedule_rises_from_exactly_zero_to_exactly_one(
    steps: int, midpoint: float | None, temperature: float | None
) -> None:
    schedule = AlphaSchedule(
        steps,
        None if midpoint is None else midpoint * steps,
        None if temperature is None else temperature * steps,
    )
    values = [schedule.value(t) for t in range(-1, steps + 2)]
    assert values[:2] == [0.0, 0.0]
    assert values[-2:] == [1.0, 1.0]
    assert all(a <= b for a, b in itertools.pairwise(values))


def test_the_default_schedule_is_symmetric() -> None:
    schedule = AlphaSchedule(100)
    assert (schedule.steps, schedule.midpoint, schedule.temperature) == (100, 50.0, 12.5)
    assert schedule.value(50) == pytest.approx(0.5)
    assert schedule.value(25) + schedule.value(75) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "got steps=0, wanted at least 1"),
        ((10, float("nan")), "midpoint=nan, wanted a finite"),
        ((10, 5.0, 0.0), "temperature=0.0+, wanted a positive"),
        ((10, 1e6, 0.1), "never rises"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlphaSchedule(*arguments)  # type: ignore[arg-type]


class TableMachine(RuleBasedStateMachine):
    """Random lives of several seeds against a model in Python."""

    @initialize()
    def start(self) -> None:
        self.table = SlotTable()
        self.model: dict[int, Stage] = {}

    @rule(seed=st.integers(0, 4))
    def add(self, seed: int) -> None:
        if seed in self.model:
            with pytest.raises(ValueError):
                self.table.add_seed(seed, "slot")
        else:
            self.table.add_seed(seed, f"slot{seed % 2}")
            self.model[seed] = Stage.DORMANT

    @rule(seed=st.integers(0, 4), stage=st.sampled_from(ORDER))
    def advance(self, seed: int, stage: Stage) -> None:
        if seed in self.model and stages.is_legal(self.model[seed], stage):
            self.table.advance(seed, ORDER.index(stage))
            self.model[seed] = stage
            if stage is Stage.GRAFTING:
                self.table.start_blend(seed, AlphaSchedule(3))
        else:
            with pytest.raises((IllegalTransition, UnknownSeed)):
                self.table.advance(seed, ORDER.index(stage))

    @rule()
    def tick(self) -> None:
        self.table.tick()

    @invariant()
    def agrees(self) -> None:
        assert self.table.seeds() == sorted(self.model)
        for seed, stage in self.model.items():
            assert self.table.stage(seed) == ORDER.index(stage)
            assert self.table.slot(seed) == f"slot{seed % 2}"
            if stage not in stages.BLENDED | {Stage.FOSSILIZED}:
                assert self.table.alpha(seed) == 0.0


TestTableMachine = TableMachine.TestCase
