"""A resumed run keeps to the times of its log, whatever its own are, and wherever that was cut."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import pytest
from torch import Tensor

from esper.log.event_log import EventLog
from esper.log.memory import MemoryStore
from esper.log.ticket import Ticket
from esper.tolaria import breaker, decisions
from esper.tolaria.catch_up import CatchUpLog
from esper_events.events import BreakerChanged, Event, TransitionApplied, TransitionDecided
from esper_events.stages import Stage
from support.fake_log import Clock
from support.growth_runs import Loop, OneSeed, bits, same, with_
from support.log_runs import plateau, started
from support.protocol import ACK_SECONDS, KEY, MortalJournal, Trainer


def applied(log: EventLog) -> list[tuple[int, int]]:
    events = (record.event for record in log.records())
    return [(e.decision, e.step) for e in events if isinstance(e, TransitionApplied)]


@pytest.mark.parametrize("elapsed", [0.0, 2 * ACK_SECONDS], ids=["as fast", "slower"])
def test_late_changes_are_applied_at_the_steps_of_the_run_before(
    elapsed: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two decisions are due at step 3 and acknowledged at step 5; the run is killed when the log
    has told of one of them."""
    clock = Clock()
    monkeypatch.setattr(decisions, "time", clock)
    monkeypatch.setattr(breaker, "time", clock)
    journal = MortalJournal(tmp_path)
    log = EventLog(journal, KEY, "r")

    def kill_between(decision: int) -> None:
        if decision == 1:
            assert log.flush(10)
            journal.cut = 0.5

    trainer = Trainer(CatchUpLog(log), kill_between)
    assert log.flush(10)
    journal.free.clear()
    for step in (1, 2, 3, 4):
        trainer.step(step, [0, 1] if step == 1 else [])
    journal.free.set()
    assert log.flush(10)
    trainer.step(5, [])
    assert not log.flush(10)
    assert applied(log) == [(0, 5)]
    log.close()

    again = EventLog(MortalJournal(tmp_path), KEY, "r")
    resumed = Trainer(CatchUpLog(again), lambda _: None)
    for step in (1, 2, 3, 4, 5):
        clock.now += elapsed
        resumed.step(step, [0, 1] if step == 1 else [])
    assert again.flush(10)
    assert applied(again) == [(0, 5), (1, 5)]
    assert resumed.stages == trainer.stages
    again.close()


def breaker_is(state: Literal["closed", "open", "half-open"], step: int) -> BreakerChanged:
    return BreakerChanged(time=1.0, step=step, breaker="log", state=state, reason="")


def test_within_a_step_what_the_log_tells_first_comes_first() -> None:
    """An attempt at the log that was answered while the run closed, in the step in which it was
    made, had not been answered when training went on in that step."""
    told = [started(KEY), breaker_is("open", 3), breaker_is("half-open", 5), plateau(5)]
    log = EventLog(MemoryStore(), KEY, "r")
    log.append(*told, breaker_is("closed", 5))
    assert log.flush(10)
    resumed = CatchUpLog(log)
    for event in told[:2]:
        resumed.append(event)
    resumed.step = 5
    attempt = resumed.append(told[2])
    assert not attempt.acknowledged
    resumed.append(told[3])
    assert attempt.acknowledged
    log.close()


class Piecemeal(EventLog):
    """Gives every append a segment of its own."""

    def append(self, *events: Event) -> Ticket:
        ticket = super().append(*events)
        assert ticket.wait(10)
        return ticket


def train(segments: list[bytes], *, resume: bool) -> tuple[list[Tensor], list[Event]]:
    """Train with seeds that come and are culled; the bits, and what was told but for its times."""
    loop = Loop(dropout=0.3)
    growth = loop.grow(
        with_(embargo=3),
        OneSeed("layer1", "low_rank", cull_in=Stage.TRAINING, again=True),
        log=Piecemeal(MemoryStore(segments), KEY, "r"),
        resume=resume,
    )
    loop.run(40)
    growth.close()
    told = [msgspec.structs.replace(record.event, time=0.0) for record in growth.records()]
    return bits(loop), told


def test_whichever_append_was_the_last_the_run_goes_on() -> None:
    segments: list[bytes] = []
    ours, told = train(segments, resume=False)
    stages = [e.target for e in told if isinstance(e, TransitionDecided)]
    assert {Stage.CULLED, Stage.EMBARGOED, Stage.DORMANT} <= set(stages)
    for last in range(1, len(segments)):
        again, told_again = train(segments[:last], resume=True)
        assert told_again == told
        assert same(again, ours)
