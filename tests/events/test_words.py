"""The history in words."""

from __future__ import annotations

import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_events.events import (
    BlueprintRegistered,
    CheckpointWritten,
    Event,
    GateMeasured,
    HostRolledBack,
    PlateauDetected,
    Record,
    ReplicaChanged,
    RollbackDecided,
    RunEnded,
    SeedFolded,
    TransitionApplied,
    TransitionDecided,
)
from esper_events.stages import Gate, Stage
from esper_events.words import describe
from support.event_runs import BLUEPRINT, decided

EVENTS: st.SearchStrategy[Event] = st.one_of(*map(st.from_type, typing.get_args(Event)))


@given(st.integers(0, 10**9), EVENTS)
def test_every_event_has_one_printable_line(index: int, event: Event) -> None:
    line = describe(Record(index, event))
    assert line.isprintable()
    assert str(index) in line
    assert len(line) <= 500


def test_text_from_a_log_cannot_steer_a_terminal() -> None:
    event = BlueprintRegistered(time=0.0, blueprint="b", name="\x1b[2J\u202eevil\nline", body=b"")
    line = describe(Record(0, event))
    assert "\x1b" not in line
    assert "\u202e" not in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            PlateauDetected(time=0.0, step=300, figures={"slope": -1e-5, "loss": 0.25}),
            "step 300: held-out loss has stopped falling [slope -1e-05, loss 0.25]",
        ),
        (
            GateMeasured(
                time=0.0,
                step=9,
                seed=2,
                gate=Gate.FORK,
                passed=False,
                reason="interval holds zero",
                figures={},
            ),
            "step 9: seed 2 fails the fork gate: interval holds zero",
        ),
        (
            TransitionDecided(
                time=0.0,
                decision=4,
                step=9,
                at_step=10,
                seed=2,
                slot="fc1",
                blueprint="0123456789abcdef",
                source=Stage.EVALUATING,
                target=Stage.CULLED,
                reason="fork gate",
                removal="fork",
            ),
            "step 9: decision 4: seed 2 (0123456789ab) in fc1 goes from evaluating to culled "
            "(the fork goes on in the host's place) at step 10: fork gate",
        ),
        (
            decided(4, Stage.DORMANT, Stage.GERMINATED, objective="next_layer"),
            f"step 10: decision 4: seed 1 ({BLUEPRINT[:12]}) in fc goes from dormant to germinated "
            "with the objective next_layer at step 11: ",
        ),
        (
            TransitionApplied(time=0.0, decision=4, step=10, seed_weights="", steps_lost=1),
            "step 10: decision 4 applied, 1 step lost",
        ),
        (
            SeedFolded(
                time=0.0,
                step=500,
                seed=3,
                slot="fc",
                module="fc",
                before="a" * 64,
                after="b" * 64,
                difference=1.25e-7,
                largest=2.5,
            ),
            "step 500: seed 3 in fc folded into fc, whose digest goes from aaaaaaaaaaaa to "
            "bbbbbbbbbbbb [difference 1.2e-07 of 2.5]",
        ),
        (
            CheckpointWritten(time=0.0, step=500, file="a" * 64, weights="b" * 64),
            "step 500: checkpoint written, file aaaaaaaaaaaa, weights bbbbbbbbbbbb",
        ),
        (
            RollbackDecided(time=0.0, step=55, to_step=40, file="a" * 64, reason="loss is nan"),
            "step 55: the host is to go back to its state of step 40: loss is nan",
        ),
        (
            HostRolledBack(time=0.0, step=56, to_step=40, weights="b" * 64),
            "step 56: the host is back at its state of step 40, 16 steps lost",
        ),
        (
            ReplicaChanged(
                time=0.0, replica="jetstream", state="lagging", behind=3, reason="no answer"
            ),
            "copy of the log on jetstream is lagging, 3 segments behind: no answer",
        ),
        (
            RunEnded(
                time=0.0,
                step=99,
                outcome="completed",
                reason="",
                final_weights="",
                lattice="",
                figures={"test_accuracy": 97.5},
            ),
            "step 99: run completed [test_accuracy 97.5]",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_some_events_in_words(event: Event, words: str) -> None:
    assert describe(Record(7, event)) == f"    7  {words}"
