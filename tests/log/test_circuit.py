"""The circuit breaker by itself, whatever it protects from."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from esper.log.circuit import Circuit


def test_failures_in_a_row_open_it_and_one_attempt_closes_it() -> None:
    told: list[tuple[str, str]] = []
    circuit = Circuit(2, 10.0, lambda *change: told.append(change))
    assert circuit.allows(0.0)
    circuit.failed(0.0, "away")
    assert circuit.allows(1.0)
    circuit.failed(1.0, "still away")
    assert (circuit.state, circuit.reason) == ("open", "still away")
    assert not circuit.allows(10.9)
    assert circuit.allows(11.0)
    assert circuit.state == "half-open"
    assert not circuit.allows(11.0)  # One attempt.
    circuit.failed(12.0, "away again")
    assert not circuit.allows(21.9)
    assert circuit.allows(22.0)
    circuit.succeeded("there it is")
    assert circuit.allows(22.0)
    assert told == [
        ("open", "still away"),
        ("half-open", "it is tried again"),
        ("open", "away again"),
        ("half-open", "it is tried again"),
        ("closed", "there it is"),
    ]


def test_a_success_between_failures_keeps_it_closed() -> None:
    circuit = Circuit(2, 1.0)
    for now in range(10):
        circuit.failed(now, "away")
        circuit.succeeded()
    assert circuit.allows(10.0)
    assert (circuit.failures, circuit.reason) == (0, "")


@given(
    st.integers(1, 4),
    st.integers(0, 5),
    st.lists(st.sampled_from(["ask", "fail", "succeed", "wait"]), max_size=60),
)
def test_whatever_happens_it_is_one_of_three(limit: int, cooldown: int, actions: list[str]) -> None:
    states = ["closed"]
    circuit = Circuit(limit, cooldown, lambda state, _: states.append(state))
    now, opened = 0, 0
    for action in actions:
        before = circuit.state
        match action:
            case "ask":
                allowed = circuit.allows(now)
                assert allowed == (before == "closed" or circuit.state != before)
                assert not (before == "open" and allowed and now < opened + cooldown)
            case "fail":
                circuit.failed(now, "away")
                assert circuit.state != "half-open"
                opened = now if circuit.state != before else opened
            case "succeed":
                circuit.succeeded()
                assert circuit.state == "closed"
            case "wait":
                now += 1
    ways = {
        ("closed", "open"),
        ("open", "half-open"),
        ("half-open", "open"),
        ("half-open", "closed"),
    }
    assert set(pairwise(states)) <= ways | {("open", "closed")}
    assert circuit.state == states[-1]
