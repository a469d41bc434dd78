"""What a controller was asked, as bytes that are the same wherever they are made."""

from __future__ import annotations

import logging
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.tamiyo.consultation import (
    Consultation,
    ConsultationError,
    NotComputableError,
    Questioner,
    canonical,
    read_consultation,
    read_policy,
    recompute,
    same_answer,
)
from esper.tamiyo.interface import (
    Advance,
    Candidate,
    Germinate,
    Observation,
    Plateau,
    Policy,
    Proposal,
    SeedView,
)
from esper.tamiyo.rules import RuleController, Rules
from esper_events.stages import Stage

RULES = Rules(warmup=0, patience=2, plateau=0.5, max_growths=1, trials=2, trial_steps=8, rungs=1)
PLACES = tuple(Candidate(slot, "widen", 8) for slot in ("a", "b", "c", "d"))
LOSSES = tuple((step, 1.0) for step in range(1, 5))
AT_REST = Observation(5, LOSSES, PLACES, (), 0)
SEED = SeedView(0, "a", "widen", Stage.TRAINING, 4, 4, (0.25, float("nan")), True, False, 0)


def asked(controller: Any = None, observation: Observation = AT_REST) -> Consultation:
    return Questioner(controller or RuleController(RULES, 3)).ask(observation)


def policy() -> Policy:
    return RuleController(RULES).policy


def test_the_state_on_record_is_the_one_before_the_answer() -> None:
    ours = RuleController(RULES, 3)
    first, second = asked(ours), asked(ours, Observation(9, LOSSES, PLACES, (SEED,), 0))
    assert len(first.proposals) == 3
    assert bytes(first.memory) != bytes(second.memory)
    for one in (first, second):
        kept = read_consultation(canonical(one))
        assert canonical(kept) == canonical(one)
        assert same_answer(recompute(read_policy(canonical(policy())), kept), one.proposals)


def test_another_observation_or_setting_gets_another_answer() -> None:
    one = asked()
    more = Policy(policy().name, policy().version, {**policy().settings, "trials": 1})
    assert not same_answer(recompute(more, one), one.proposals)
    falling = Observation(5, ((1, 1.0), (2, 1.0), (3, 0.1), (4, 0.01)), PLACES, (), 0)
    assert asked(observation=falling).proposals == ()


def test_equal_consultations_have_equal_bytes_on_any_machine() -> None:
    """Golden, so that digests on record stay those of what they name."""
    assert canonical(asked()) == canonical(asked())
    assert canonical(Policy("n", 1, {"b": (1,), "a": 2.0})) == canonical(
        Policy("n", 1, {"a": 2.0, "b": [1]})
    )
    assert canonical(Policy("n", 1, {"b": 0.5})).hex() == (
        "83a46e616d65a16ea776657273696f6e01a873657474696e677381a162cb3fe0000000000000"
    )


class Teller:
    """Says what it is told to say, and remembers what it is told to remember."""

    def __init__(self, proposals: list[Proposal], memory: Any = None) -> None:
        self.proposals = proposals
        self.memory = memory

    def decide(self, observation: Observation) -> list[Proposal]:
        return self.proposals

    def state(self) -> Any:
        return self.memory

    def restore(self, state: Any) -> None:
        self.memory = state


def test_numbers_of_other_libraries_are_numbers() -> None:
    seed: Any = numpy.int64(3)
    loss: Any = numpy.float64(0.5)
    theirs = asked(Teller([Advance(seed, ""), Plateau(loss)]))
    assert canonical(theirs) == canonical(asked(Teller([Advance(3, ""), Plateau(0.5)])))


def test_a_proposal_that_is_no_data_is_refused() -> None:
    slot: Any = object()
    with pytest.raises(ValueError, match="cannot be put on record: got a object, wanted numbers"):
        canonical(asked(Teller([Germinate(slot, "widen", "")])))


def test_a_state_that_is_no_data_is_left_out_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    questioner = Questioner(Teller([Advance(0, "")], memory={1: "keys are text"}))
    with caplog.at_level(logging.WARNING, logger="esper.tamiyo"):
        told = [questioner.ask(AT_REST) for _ in range(3)]
    assert [one.remembered for one in told] == [None] * 3
    assert len(caplog.records) == 1


def test_what_is_not_known_here_is_not_recomputed() -> None:
    one = asked()
    for other in (
        Policy("example.org/own", 1, {}),
        Policy("", 0, {}),
        Policy(policy().name, policy().version + 1, policy().settings),
    ):
        with pytest.raises(NotComputableError):
            recompute(other, one)
    with pytest.raises(ConsultationError):
        recompute(Policy(policy().name, policy().version, {"warmup": "soon"}), one)


KEPT = canonical(asked(observation=Observation(9, LOSSES, PLACES, (SEED,), 0)))


@given(st.integers(0, len(KEPT) - 1), st.integers(0, 255), st.integers(0, 40))
def test_spoilt_bytes_are_refused_or_are_another_consultation(at: int, byte: int, cut: int) -> None:
    spoilt = KEPT[:at] + bytes([byte]) + KEPT[at + 1 : len(KEPT) - cut]
    try:
        one = read_consultation(spoilt)
        recompute(policy(), one)
    except ConsultationError:
        return
    assert canonical(one) == spoilt
