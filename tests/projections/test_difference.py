"""Where two histories part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.projections.difference import INCIDENTAL, History, compare
from esper.projections.lattice import ProjectionError
from esper_events.events import (
    CheckpointWritten,
    Event,
    PlateauDetected,
    Record,
    ReplicaChanged,
    RunStarted,
    TransitionLapsed,
)
from esper_events.keys import SigningKey
from esper_events.stages import Stage
from support.event_runs import UP, applied, blueprint, consulted, decided, ended, lattice, started
from support.histories import KEY, histories, retimed

GENESIS = started(KEY)


def of(*events: Event) -> History:
    return History([Record(index, event) for index, event in enumerate(events)])


def test_why_something_was_decided_does_not_count() -> None:
    dormant, germinated = UP[:2]
    declared = (GENESIS, lattice("fc", "head"), blueprint())
    a = of(*declared, decided(0, dormant, germinated))
    b = of(*declared, consulted(9), decided(0, dormant, germinated, consulted=9))
    assert compare(a, b).same
    assert not compare(a, b, exact=True).same
    other = of(*declared, consulted(9), decided(0, dormant, germinated, slot="head", consulted=9))
    assert [field.name for field in compare(a, other).fields] == ["slot"]


def plateau(step: int = 9, **figures: float) -> PlateauDetected:
    return PlateauDetected(time=1.5, step=step, figures=figures)


def checkpoint(step: int, weights: str) -> CheckpointWritten:
    return CheckpointWritten(time=5.0, step=step, file="f", weights=weights)


def grown() -> Sequence[Event]:
    """A seed's way from germination to its end as a fossil."""
    moves = enumerate(pairwise(UP))
    return [e for n, (s, t) in moves for e in (decided(n, s, t), applied(n))]


def test_times_keys_and_names_do_not_count_nor_does_what_became_of_the_log_and_its_copy() -> None:
    lagging = ReplicaChanged(time=2.0, replica="nats", state="lagging", behind=1, reason="")
    other = msgspec.structs.replace(started(SigningKey.generate()), run="other", time=99.0)
    a = of(GENESIS, lattice("fc"), plateau(), checkpoint(9, "w"), ended())
    b = of(other, lagging, lattice("fc"), checkpoint(9, "w"), plateau(), ended())
    found = compare(a, b)
    assert found.same
    assert (found.beginnings, found.parted, found.shared) == ((), None, 4)
    exact = compare(a, b, exact=True)
    assert not exact.same
    assert exact.parted == (a.records[0], b.records[0])
    assert {field.name for field in exact.fields} == {"run", "trainer_key", "time"}


@given(histories())
def test_a_history_is_its_own_at_any_time_and_in_any_order_of_its_figures(
    records: list[Record],
) -> None:
    later = [retimed(record) for record in records]
    assert compare(History(records), History(later)).same
    assert compare(History(records), History(records), exact=True).same


@given(histories(), st.data())
def test_the_first_event_that_is_missing_is_where_they_part(
    records: list[Record], data: st.DataObject
) -> None:
    told = [r for r in records if not isinstance(r.event, INCIDENTAL)]
    cut = data.draw(st.integers(1, len(records)))
    found = compare(History(records), History(records[:cut]))
    rest = [record for record in told if record.index >= cut]
    assert found.shared == len(told) - len(rest)
    assert found.parted == ((rest[0], None) if rest else None)
    assert found.same is (not rest)


def test_the_field_that_differs_is_named_by_its_bits() -> None:
    nan, zero = plateau(loss=math.nan, gain=0.0), plateau(loss=math.nan, gain=-0.0)
    found = compare(of(GENESIS, nan), of(GENESIS, zero))
    assert [(f.name, f.a, f.b) for f in found.fields] == [("figures.gain", 0.0, -0.0)]
    assert compare(of(GENESIS, nan), of(GENESIS, nan)).same


def test_how_the_runs_began_is_told_by_setting_and_apart_from_where_they_part() -> None:
    def begun(**changes: object) -> RunStarted:
        return msgspec.structs.replace(GENESIS, **changes)

    a = of(begun(config="[run]\nsteps = 1\nlr = 0.1", platform={"torch": "1"}), plateau())
    b = of(begun(config="[run]\nsteps = 2\nlr = 0.1", platform={"torch": "2"}, seed=8), plateau())
    found = compare(a, b)
    assert found.same
    assert {(f.name, f.a, f.b) for f in found.beginnings} == {
        ("config.run.steps", 1, 2),
        ("platform.torch", "1", "2"),
        ("seed", 7, 8),
    }
    assert not compare(a, of(begun(host_weights="other"), plateau())).same
    free = compare(of(begun(config="= no TOML", host_weights="")), of(begun(config='{"lr": 1}')))
    assert [f.name for f in free.beginnings] == ["config", "config.lr"]


def test_what_followed_is_told_of_both() -> None:
    start = (GENESIS, lattice("fc"), blueprint())
    lapsed = TransitionLapsed(time=3.0, decision=0, step=11, reason="late")
    first = decided(0, Stage.DORMANT, Stage.GERMINATED)
    a, b = of(*start, *grown(), ended()), of(*start, first, lapsed)
    found = compare(a, b)
    assert (found.shared, found.parted) == (4, (a.records[4], b.records[4]))
    one, other = found.after
    assert (one.events, one.decided, one.applied, one.lapsed) == (12, 5, 5, 0)
    assert one.entered[Stage.FOSSILIZED.value] == 1
    assert one.kept == ("seed 1, b in fc",)
    assert (one.outcome, one.step) == ("completed", 20)
    assert (other.events, other.applied, other.kept, other.outcome) == (1, 0, (), "")


def test_checkpoints_tell_between_which_steps_the_weights_part() -> None:
    a = of(GENESIS, checkpoint(100, "x"), checkpoint(200, "y"), checkpoint(300, "z"))
    b = of(GENESIS, checkpoint(100, "x"), checkpoint(200, "other"), checkpoint(250, "-"))
    found = compare(a, b)
    assert (found.same, found.parted) == (False, None)
    assert (found.last_same, found.first_other) == (100, 200)


def test_a_history_that_cannot_have_happened_is_refused() -> None:
    with pytest.raises(ProjectionError, match="is settled, but it is not open"):
        of(GENESIS, applied(1))
