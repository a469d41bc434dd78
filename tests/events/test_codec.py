"""An event has one encoding, and an encoding one meaning."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from esper_events.codec import MAX_EVENT_BYTES, RUN_CODEC, decode_event, encode_event
from esper_events.errors import CodecError
from esper_events.events import Event, LatticeDeclared, PlateauDetected, SlotDeclared
from esper_events.stages import Stage
from support.event_runs import BLUEPRINT, decided

FIGURES = st.dictionaries(st.text(max_size=5), st.floats(), max_size=5)
EVENTS: st.SearchStrategy[Event] = st.one_of(*map(st.from_type, typing.get_args(Event)))


def raw(**fields: object) -> bytes:
    return msgspec.msgpack.encode(fields)


def plateau(**changes: object) -> bytes:
    fields = {"kind": "plateau.detected", "step": 3, "figures": {"a": 1.0, "b": 2.0}, "time": 1.0}
    return raw(**(fields | changes))


def is_encodable(event: Event) -> bool:
    """Whether it is: integers beyond 64 bits and lone surrogates have no encoding."""
    try:
        encode_event(event)
    except CodecError:
        return False
    return True


@given(EVENTS)
def test_every_kind_survives_a_round_trip(event: Event) -> None:
    try:
        data = encode_event(event)
    except CodecError:
        return  # integers beyond 64 bits and lone surrogates have no encoding
    assert encode_event(decode_event(data)) == data


@given(st.integers(0, 2**64 - 1))
def test_a_figure_keeps_every_bit_of_its_float(bits: int) -> None:
    (value,) = struct.unpack(">d", bits.to_bytes(8, "big"))
    data = encode_event(PlateauDetected(time=value, step=0, figures={"x": value}))
    event = decode_event(data)
    assert isinstance(event, PlateauDetected)
    for kept in (event.time, event.figures["x"]):
        assert struct.pack(">d", kept) == bits.to_bytes(8, "big")


@pytest.mark.parametrize("value", ["nan", "-nan", "inf", "-inf", "-0.0"])
def test_what_a_diverged_loss_measures_survives(value: str) -> None:
    figure = float(value)
    event = decode_event(encode_event(PlateauDetected(time=0.0, step=0, figures={"x": figure})))
    assert isinstance(event, PlateauDetected)
    assert struct.pack(">d", event.figures["x"]) == struct.pack(">d", figure)


def test_the_order_in_which_figures_were_put_in_does_not_matter() -> None:
    one = PlateauDetected(time=0.0, step=0, figures={"a": 1.0, "b": 2.0})
    two = PlateauDetected(time=0.0, step=0, figures={"b": 2.0, "a": 1.0})
    assert encode_event(one) == encode_event(two)


def test_an_integer_in_a_float_field_is_written_as_a_float() -> None:
    event = PlateauDetected(time=1, step=0, figures={"a": 2})
    assert encode_event(event) == encode_event(
        PlateauDetected(time=1.0, step=0, figures={"a": 2.0})
    )


CANONICAL = plateau()
NON_CANONICAL = {
    "integer in 9 bytes": CANONICAL.replace(b"\xa4step\x03", b"\xa4step\xcf" + b"\0" * 7 + b"\x03"),
    "integer in 2 bytes": CANONICAL.replace(b"\xa4step\x03", b"\xa4step\xcc\x03"),
    "text with a long header": CANONICAL.replace(b"\xa4step", b"\xd9\x04step"),
    "map with a long header": b"\xde\x00\x04" + CANONICAL[1:],
    "float in 4 bytes": CANONICAL.replace(
        b"\xa4time" + struct.pack(">Bd", 0xCB, 1.0), b"\xa4time" + struct.pack(">Bf", 0xCA, 1.0)
    ),
    "integer for a float": plateau(time=1),
    "duplicate field": b"\x85" + CANONICAL[1:] + b"\xa4step\x03",
    "duplicate figure": CANONICAL.replace(b"\xa1b", b"\xa1a"),
    "figures out of order": plateau(figures={"b": 2.0, "a": 1.0}),
    "fields out of order": raw(
        step=3, kind="plateau.detected", figures={"a": 1.0, "b": 2.0}, time=1.0
    ),
    "unknown field": plateau(more=1),
    "missing field": raw(kind="plateau.detected", step=3, time=1.0),
    "unknown kind": plateau(kind="plateau.lost"),
    "no kind": raw(step=3, figures={}, time=1.0),
    "trailing byte": CANONICAL + b"\0",
    "two events": CANONICAL * 2,
    "boolean for an integer": plateau(step=True),
    "text for an integer": plateau(step="3"),
    "null for a figure": plateau(figures={"a": None}),
    "bad UTF-8": CANONICAL.replace(b"\xa1a", b"\xa1\xff"),
    "nothing": b"",
    "null": b"\xc0",
    "reserved byte": b"\xc1",
    "deep nesting": CANONICAL[: CANONICAL.index(b"step") + 4] + b"\x91" * 100_000,
}


def test_the_bytes_that_the_next_test_spoils_are_good() -> None:
    assert encode_event(decode_event(CANONICAL)) == CANONICAL


@pytest.mark.parametrize("name", NON_CANONICAL)
def test_every_other_spelling_is_refused(name: str) -> None:
    with pytest.raises(CodecError):
        decode_event(NON_CANONICAL[name])


def test_a_default_is_always_written_and_required() -> None:
    slot = {
        "kind": "transition.applied",
        "decision": 1,
        "step": 1,
        "seed_weights": "",
        "time": 1.0,
    }
    with pytest.raises(CodecError, match="canonical"):
        decode_event(raw(**slot))


@pytest.mark.parametrize(
    "event",
    [
        PlateauDetected(time=0.0, step=2**70, figures={}),
        PlateauDetected(time=0.0, step=1.0, figures={}),  # type: ignore[arg-type]
        PlateauDetected(time=0.0, step=1, figures={"\ud800": 1.0}),
        PlateauDetected(time=0.0, step=1, figures={"x": object()}),  # type: ignore[dict-item]
        LatticeDeclared(time=0.0, slots=(), left_out={"x": "y" * MAX_EVENT_BYTES}),
    ],
)
def test_an_event_that_cannot_be_read_back_is_never_written(event: Event) -> None:
    with pytest.raises(CodecError):
        encode_event(event)


def test_a_huge_claimed_length_allocates_nothing() -> None:
    slot = SlotDeclared(
        id="s",
        source="output",
        start="a",
        end="a",
        in_shape=(),
        out_shape=(),
        in_axis=0,
        out_axis=0,
    )
    data = encode_event(LatticeDeclared(time=0.0, slots=(slot,), left_out={}))
    at = data.index(b"in_shape") + 8
    tracemalloc.start()
    for claim in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"):
        with pytest.raises(CodecError):
            decode_event(data[:at] + claim + data[at + 1 :])
    with pytest.raises(CodecError, match="at most 1048576"):
        decode_event(bytes(MAX_EVENT_BYTES + 1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * MAX_EVENT_BYTES


@pytest.mark.parametrize("objective", [UNSET, "reconstruction", "negative_gradient", "next_layer"])
def test_an_objective_that_is_unset_is_not_written(objective: Any) -> None:
    """So the bytes of a decision about a seed with the shadow objective have no such field."""
    event = decided(4, Stage.DORMANT, Stage.GERMINATED, objective=objective)
    fields = {
        "kind": "transition.decided",
        "decision": 4,
        "step": 10,
        "at_step": 11,
        "seed": 1,
        "slot": "fc",
        "blueprint": BLUEPRINT,
        "source": "dormant",
        "target": "germinated",
        "reason": "",
        "removal": "",
        **({"objective": objective} if objective else {}),
        "time": 2.0,
    }
    assert encode_event(event) == raw(**fields)
    assert decode_event(raw(**fields)) == event
    for other in ("shadow", "", None, "other"):
        with pytest.raises(CodecError):
            decode_event(raw(**{**fields, "objective": other}))


@given(st.binary(max_size=200))
def test_noise_raises_only_the_declared_error(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode_event(data)


@given(EVENTS, st.data())
def test_a_mutated_event_is_refused_or_is_canonical(event: Event, data: st.DataObject) -> None:
    try:
        good = encode_event(event)
    except CodecError:
        return
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + data.draw(st.binary(max_size=6)) + good[at + data.draw(st.integers(0, 4)) :]
    with contextlib.suppress(CodecError):
        assert encode_event(decode_event(bad)) == bad


SPELLINGS = st.sampled_from(
    [
        plateau(figures={"a": 1.0}),
        plateau(step=4),
        plateau(figures={"b": 2.0, "a": 1.0}),
        plateau()[:-1],
        plateau() + b"\xc0",
        b"",
        b"\xc0",
        raw(step=3, kind="plateau.detected", figures={}, time=1.0),
    ]
)


@given(st.lists(st.one_of(SPELLINGS, EVENTS.filter(is_encodable).map(encode_event)), max_size=20))
def test_many_events_are_read_as_each_of_them(encoded: list[bytes]) -> None:
    try:
        each = [decode_event(data) for data in encoded]
    except CodecError:
        with pytest.raises(CodecError):
            RUN_CODEC.decode_all(encoded)
    else:
        assert list(map(encode_event, RUN_CODEC.decode_all(encoded))) == encoded
        assert list(map(encode_event, each)) == encoded


@pytest.mark.parametrize("at", range(1, len(plateau())))
def test_an_event_cut_in_two_is_not_read_as_one(at: int) -> None:
    with pytest.raises(CodecError):
        RUN_CODEC.decode_all([plateau()[:at], plateau()[at:]])


@pytest.mark.parametrize("count", [15, 16, 65_535, 65_536])
def test_as_many_events_as_a_segment_holds_are_read_at_once(count: int) -> None:
    data = encode_event(PlateauDetected(time=1.0, step=3, figures={}))
    assert len(RUN_CODEC.decode_all([data] * count)) == count
