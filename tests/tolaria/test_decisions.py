from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from esper.tolaria import breaker, decisions
from esper.tolaria.decisions import Change, Decisions, Effect
from esper.tolaria.settings import GrowthSettings
from esper_events.events import (
    BreakerChanged,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
)
from esper_events.stages import Stage
from support.fake_log import Clock, FakeLog

SETTINGS = GrowthSettings(lead=3, ack_timeout=2.0, breaker_limit=2, breaker_cooldown=10)
SYNC = GrowthSettings(lead=3, ack_timeout=2.0, sync_decisions=True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(decisions, "time", clock)
    monkeypatch.setattr(breaker, "time", clock)
    return clock


@pytest.fixture
def log(clock: Clock) -> FakeLog:
    return FakeLog(clock)


class Seed:
    """What happened to one seed at the hands of its changes."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.stage = Stage.TRAINING
        self.applied: list[int] = []
        self.lapses = 0

    def change(
        self,
        target: Stage = Stage.GRAFTING,
        apply: Callable[[int], Effect] | None = None,
    ) -> Change:
        source = self.stage

        def move(step: int) -> Effect:
            self.applied.append(step)
            self.stage = target
            return Effect("digest", steps_lost=7)

        def lapse() -> None:
            self.lapses += 1

        return Change(
            seed=self.number,
            slot="fc",
            blueprint="b",
            source=source,
            target=target,
            reason="why",
            apply=apply or move,
            still_holds=lambda: self.stage is source,
            lapsed=lapse,
        )


def reasons(log: FakeLog) -> list[str]:
    return [e.reason for e in log.events if isinstance(e, TransitionLapsed)]


def turns(log: FakeLog) -> list[str]:
    return [e.state for e in log.events if isinstance(e, BreakerChanged)]


def test_an_acknowledged_change_is_applied_at_its_step_and_not_before(log: FakeLog) -> None:
    ours, seed = Decisions(log, SETTINGS), Seed()
    ours.decide(10, seed.change())
    log.acknowledge()
    for step in (11, 12):
        assert not ours.settle(step)
    assert seed.applied == []
    assert ours.pending(0)
    assert ours.heading(0, Stage.GRAFTING)
    assert not ours.heading(0, Stage.CULLED)
    assert ours.settle(13)
    assert seed.applied == [13]
    assert not ours
    (decided,), (applied,) = log.of(TransitionDecided), log.of(TransitionApplied)
    assert isinstance(decided, TransitionDecided)
    assert (decided.step, decided.at_step, decided.reason) == (10, 13, "why")
    assert isinstance(applied, TransitionApplied)
    assert (applied.decision, applied.step) == (decided.decision, 13)
    assert (applied.seed_weights, applied.steps_lost) == ("digest", 7)


def test_a_late_acknowledgement_delays_a_change(log: FakeLog, clock: Clock) -> None:
    ours, seed = Decisions(log, SETTINGS), Seed()
    ours.decide(0, seed.change())
    clock.now = 100.0
    assert not ours.settle(3)
    clock.now = 101.9
    assert not ours.settle(4)
    log.acknowledge()
    assert ours.settle(5)
    assert seed.applied == [5]
    assert log.waits == []


def test_a_change_lapses_when_the_log_does_not_answer_in_time(log: FakeLog, clock: Clock) -> None:
    ours, seed = Decisions(log, SETTINGS), Seed()
    ours.decide(0, seed.change())
    ours.settle(3)
    clock.now = 2.0
    assert not ours.settle(4)
    log.acknowledge()
    assert not ours.settle(5)
    assert (seed.applied, seed.lapses, ours.lapsed) == ([], 1, 1)
    assert reasons(log) == ["the log did not acknowledge it in time"]


def test_a_failed_append_lapses_at_its_step_without_waiting(log: FakeLog) -> None:
    ours, seed = Decisions(log, SYNC), Seed()
    ours.decide(0, seed.change())
    log.tickets[-1].error = OSError("no space left")
    assert not ours.settle(3)
    assert (seed.applied, seed.lapses, log.waits) == ([], 1, [])


def test_a_change_that_was_overtaken_lapses(log: FakeLog) -> None:
    ours, seed = Decisions(log, SETTINGS), Seed()
    ours.decide(0, seed.change(Stage.CULLED))
    ours.decide(1, seed.change(Stage.GRAFTING))
    log.acknowledge()
    for step in range(6):
        ours.settle(step)
    assert seed.applied == [3]
    assert seed.stage is Stage.CULLED
    assert reasons(log) == ["overtaken by what has happened since"]


def test_withdrawing_touches_one_seed_and_abandoning_all(log: FakeLog) -> None:
    log.good = True
    ours, first, second, third = Decisions(log, SETTINGS), Seed(0), Seed(1), Seed(2)
    for seed in (first, second, third):
        ours.decide(0, seed.change())
    ours.withdraw(1, 1, "user's wish")
    ours.settle(3)
    assert [s.applied for s in (first, second, third)] == [[3], [], [3]]
    ours.decide(4, first.change(Stage.STABILIZING))
    ours.abandon(5, "the run ended")
    assert not ours.settle(100)
    assert reasons(log) == ["user's wish", "the run ended"]
    assert (second.lapses, first.lapses, ours.lapsed) == (1, 1, 2)


def test_a_change_that_fails_lapses_and_tells_the_caller(log: FakeLog) -> None:
    def fail(_: int) -> Effect:
        raise RuntimeError("out of memory")

    log.good = True
    ours, seed, other = Decisions(log, SETTINGS), Seed(0), Seed(1)
    ours.decide(0, seed.change(apply=fail))
    ours.decide(0, other.change())
    with pytest.raises(RuntimeError, match="out of memory"):
        ours.settle(3)
    assert reasons(log) == ["it failed: RuntimeError: out of memory"]
    ours.settle(4)
    assert other.applied == [4]


def test_sync_decisions_wait_for_the_log(log: FakeLog) -> None:
    ours, seed = Decisions(log, SYNC), Seed()
    log.answers_after = 1.5
    ours.decide(0, seed.change())
    assert not ours.settle(2)
    assert log.waits == []
    assert ours.settle(3)
    assert seed.applied == [3]


def test_all_that_is_due_shares_one_time_out(log: FakeLog, clock: Clock) -> None:
    ours, seeds = Decisions(log, SETTINGS), [Seed(n) for n in range(5)]
    for seed in seeds:
        ours.decide(0, seed.change(), delay=0)
    assert not ours.settle(0, wait=True)
    assert clock.now == SETTINGS.ack_timeout
    assert [seed.lapses for seed in seeds] == [1] * 5


def test_lapses_in_a_row_open_the_breaker(log: FakeLog, clock: Clock) -> None:
    ours, seed = Decisions(log, SETTINGS), Seed()
    for step in (0, 10):
        assert ours.allowed(step)
        ours.decide(step, seed.change(), delay=0)
        ours.settle(step)
        clock.now += 3.0
        ours.settle(step + 1)
    assert turns(log) == ["open"]
    assert not ours.allowed(11)
    assert not ours.allowed(20)
    assert turns(log) == ["open"]
    assert not ours.allowed(21)  # Half-open: the event itself tries the log.
    assert not ours.allowed(22)
    clock.now += 3.0
    assert not ours.allowed(23)
    assert turns(log) == ["open", "half-open", "open"]
    assert not ours.allowed(32)
    assert not ours.allowed(33)
    log.acknowledge()
    assert ours.allowed(34)
    assert turns(log) == ["open", "half-open", "open", "half-open", "closed"]


def test_one_success_between_lapses_keeps_the_breaker_closed(log: FakeLog, clock: Clock) -> None:
    ours, seed = Decisions(log, SETTINGS), Seed()
    for step in range(0, 60, 10):
        ours.decide(step, seed.change(), delay=0)
        if step % 20:
            log.acknowledge()
        ours.settle(step)
        clock.now += 3.0
        ours.settle(step + 1)
    assert seed.lapses == len(seed.applied) == 3
    assert turns(log) == []


def test_a_decision_that_is_acknowledged_after_all_closes_the_breaker(
    log: FakeLog, clock: Clock
) -> None:
    ours, seeds = Decisions(log, SETTINGS), [Seed(n) for n in range(3)]
    ours.decide(0, seeds[0].change(), delay=0)
    ours.decide(0, seeds[1].change(), delay=0)
    ours.decide(0, seeds[2].change(), delay=5)
    ours.settle(0)
    clock.now += 3.0
    ours.settle(1)
    log.acknowledge()
    ours.settle(5)
    assert seeds[2].applied == [5]
    assert turns(log) == ["open", "closed"]
    assert ours.allowed(6)


def test_sync_mode_waits_for_the_breakers_attempt(log: FakeLog) -> None:
    ours = Decisions(log, SYNC)
    for number in range(SYNC.breaker_limit):
        ours.decide(0, Seed(number).change(), delay=0)
    ours.settle(0)
    log.answers_after = 1.0
    assert ours.allowed(SYNC.breaker_cooldown)
    assert turns(log) == ["open", "half-open", "closed"]


class DecisionsMachine(RuleBasedStateMachine):
    """Any order of deciding, acknowledging, failing, stepping and waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(decisions, "time", self.clock)
        self.patch.setattr(breaker, "time", self.clock)
        self.log = FakeLog(self.clock)
        self.ours = Decisions(self.log, SETTINGS)
        self.step = 0
        self.applied: dict[int, list[int]] = {}
        self.unacknowledged: list[int] = []

    def teardown(self) -> None:
        self.patch.undo()

    @rule(delay=st.integers(0, 4), seed=st.integers(0, 2), holds=st.booleans())
    def decide(self, delay: int, seed: int, holds: bool) -> None:
        number = len(self.applied)
        self.applied[number] = []
        ticket_at = len(self.log.tickets)

        def apply(step: int) -> Effect:
            self.applied[number].append(step)
            if not self.log.tickets[ticket_at].acknowledged:
                self.unacknowledged.append(number)
            return Effect()

        change = Change(
            seed=seed,
            slot="fc",
            blueprint="b",
            source=Stage.TRAINING,
            target=Stage.GRAFTING,
            reason="",
            apply=apply,
            still_holds=lambda: holds,
            lapsed=lambda: None,
        )
        self.ours.decide(self.step, change, delay)

    @precondition(lambda self: self.log.tickets)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.log.tickets))
        if data.draw(st.booleans()):
            ticket.acknowledged = ticket.error is None
        elif not ticket.acknowledged:
            ticket.error = OSError("disk")

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0]), wait=st.booleans())
    def safe_point(self, seconds: float, wait: bool) -> None:
        self.step += 1
        self.clock.now += seconds
        self.ours.settle(self.step, wait=wait)
        self.ours.allowed(self.step)

    @rule(seed=st.integers(0, 2))
    def withdraw(self, seed: int) -> None:
        self.ours.withdraw(seed, self.step, "withdrawn")

    @invariant()
    def nothing_is_applied_before_its_acknowledgement(self) -> None:
        assert self.unacknowledged == []

    @invariant()
    def every_decision_is_open_or_ended_once(self) -> None:
        ended = [
            e.decision
            for e in self.log.events
            if isinstance(e, (TransitionApplied, TransitionLapsed))
        ]
        assert len(ended) == len(set(ended))
        assert sorted({*ended, *self.ours._open}) == sorted(self.applied)
        assert not set(ended) & set(self.ours._open)

    @invariant()
    def applied_exactly_as_recorded_and_not_before_its_step(self) -> None:
        told = {e.decision: [e.step] for e in self.log.events if isinstance(e, TransitionApplied)}
        assert {n: steps for n, steps in self.applied.items() if steps} == told
        for event in self.log.events:
            if isinstance(event, TransitionDecided) and event.decision in told:
                assert told[event.decision][0] >= event.at_step

    @invariant()
    def the_breaker_turns_only_to_another_state(self) -> None:
        states = ["closed", *turns(self.log)]
        assert all(one != two for one, two in pairwise(states))


DecisionsMachine.TestCase.settings = hypothesis_settings(
    max_examples=60, stateful_step_count=30, deadline=None
)
TestDecisionsMachine = DecisionsMachine.TestCase
