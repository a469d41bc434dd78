"""What no run can say is refused, even under a good signature."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_events.chain import ChainVerifier
from esper_events.errors import ChainError
from esper_events.events import Event, ReplicaChanged, RunEnded, TransitionLapsed
from esper_events.keys import SigningKey
from esper_events.rules import Rules
from esper_events.stages import Stage, is_legal
from support.event_runs import (
    UP,
    Run,
    applied,
    blueprint,
    consulted,
    decided,
    ended,
    folded,
    lattice,
    started,
)

KEY = SigningKey.generate()
START = started(KEY)
DECLARED = (lattice("fc", "other"), blueprint())
LEVEL = ReplicaChanged(time=0.0, replica="jetstream", state="level", behind=0, reason="")
B2 = hashlib.sha256(b"b2").hexdigest()
D, G, T, C = Stage.DORMANT, Stage.GERMINATED, Stage.TRAINING, Stage.CULLED
LATE_OBJECTIVE = decided(2, G, T, objective="next_layer")


def lapsed(decision: int) -> TransitionLapsed:
    return TransitionLapsed(time=0.0, decision=decision, step=0, reason="late")


def refusal(*events: Event) -> str | None:
    """The reason at the last event; those before it must be admitted.

    A lattice with two slots and one blueprint is declared behind a first run.started.
    """
    rules = Rules()
    if events[0] is START and len(events) > 1:
        events = (START, *DECLARED, *events[1:])
    *before, last = events
    assert [rules.admit(event) for event in before] == [None] * len(before)
    return rules.admit(last)


def test_a_seed_lives_and_dies() -> None:
    path = (D, G, T, C, Stage.EMBARGOED, D, G)
    story: list[Event] = [START]
    for number, (source, target) in enumerate(pairwise(path)):
        story += (decided(number, source, target), applied(number))
    assert refusal(*story, ended()) is None


def test_a_decision_may_name_any_consultation_before_it() -> None:
    story = (consulted(8), consulted(10), decided(1, D, G, consulted=8))
    assert refusal(START, *story, applied(1), ended()) is None


def fossil() -> list[Event]:
    story: list[Event] = [START]
    for number, (source, target) in enumerate(pairwise(UP)):
        story += (decided(number, source, target), applied(number))
    return story


def test_a_fossil_is_folded_once_in_its_own_slot() -> None:
    assert refusal(*fossil(), folded(), ended()) is None
    assert "a second time" in (refusal(*fossil(), folded(), folded()) or "")
    assert "it is in fc" in (refusal(*fossil(), folded(slot="other")) or "")


@pytest.mark.parametrize("length", [1, 5, 11])
def test_what_is_no_fossil_is_not_folded(length: int) -> None:
    assert "not fossilized" in (refusal(*fossil()[:length], folded()) or "")


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ((ended(),), "begins with run.ended, wanted run.started"),
        ((START, START), "starts a second time"),
        ((START, ended(), ended()), "after the end"),
        ((START, ended(), LEVEL), "after the end"),
        ((START, applied(1)), "decision 1 was never taken"),
        ((START, lapsed(1)), "decision 1 was never taken"),
        ((START, decided(1, D, G), decided(1, D, G)), "taken a second time"),
        ((START, decided(1, D, G), applied(1), applied(1)), "already applied or lapsed"),
        ((START, decided(1, D, G), applied(1), lapsed(1)), "already applied or lapsed"),
        ((START, decided(1, D, G), lapsed(1), applied(1)), "already applied or lapsed"),
        ((START, decided(1, D, T)), "never goes from dormant to training"),
        ((START, decided(1, G, T)), "from germinated, but it is dormant"),
        ((START, decided(1, D, G), lapsed(1), decided(2, G, T)), "but it is dormant"),
        ((START, decided(1, D, G), applied(1), decided(2, D, G)), "but it is germinated"),
        ((START, decided(1, D, G), decided(2, G, T), applied(2)), "but it is dormant"),
        ((START, decided(1, D, G), decided(2, D, G, slot="other")), "in slot fc and stays so"),
        ((START, blueprint(b"b2", B2), decided(1, D, G), decided(2, D, G, blueprint=B2)), "stays"),
        ((START, decided(1, D, G, slot="nowhere")), "slot nowhere was never declared"),
        ((START, decided(1, D, G, blueprint=B2)), "was never registered"),
        (
            (START, decided(1, D, G), applied(1), LATE_OBJECTIVE),
            "an objective as it becomes training",
        ),
        ((START, consulted(9), consulted(9)), "consulted at step 9 a second time"),
        (
            (START, consulted(9), decided(1, D, G, consulted=10)),
            "decision 1 follows from a consultation at step 10, and there was none",
        ),
        ((START, blueprint(b"other")), "does not have the digest"),
        ((START, decided(1, D, G), ended()), "decision 1 was neither applied nor lapsed"),
    ],
)
def test_an_impossible_history_is_refused(events: tuple[Event, ...], reason: str) -> None:
    found = refusal(*events)
    assert found is not None
    assert reason in found


def test_a_run_that_failed_may_leave_a_decision_open() -> None:
    failed = RunEnded(
        time=0.0,
        step=1,
        outcome="failed",
        reason="out of memory",
        final_weights="",
        lattice="",
        figures={},
    )
    assert refusal(START, decided(1, D, G), failed) is None


def test_decisions_about_one_seed_may_overlap_as_long_as_they_apply_in_order() -> None:
    story = (decided(1, D, G), decided(2, G, T), applied(1), applied(2))
    assert refusal(START, *story, ended()) is None


@given(st.data())
def test_exactly_the_table_is_followed(data: st.DataObject) -> None:
    """A random walk: the rules admit a transition when the table does, from where the seed is."""
    rules, stage = Rules(), Stage.DORMANT
    assert [rules.admit(event) for event in (START, *DECLARED)] == [None] * 3
    for number in range(data.draw(st.integers(1, 12))):
        source = data.draw(st.sampled_from((stage, stage, stage, *Stage)))
        legal = [target for target in Stage if is_legal(source, target)]
        target = data.draw(st.sampled_from(legal + legal + list(Stage)))
        admitted = rules.admit(decided(number, source, target)) is None
        assert admitted == (source is stage and is_legal(source, target))
        if not admitted:
            return
        if data.draw(st.booleans()):
            assert rules.admit(applied(number)) is None
            stage = target
        else:
            assert rules.admit(lapsed(number)) is None


def test_the_chain_says_where_the_rule_was_broken(
    key: SigningKey, make: Callable[..., Run]
) -> None:
    run = make((started(key), *DECLARED), (decided(1, D, G), applied(2)))
    verifier = ChainVerifier()
    verifier.accept(run.segments[0])
    with pytest.raises(ChainError, match="decision 2 was never taken") as caught:
        verifier.accept(run.segments[1], at=1000)
    assert (caught.value.segment, caught.value.event) == (1, 4)
    assert caught.value.byte is not None
    assert caught.value.byte > 1000
    assert str(caught.value).startswith(f"segment 1, byte {caught.value.byte}, event 4: ")
