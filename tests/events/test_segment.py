"""A segment has one encoding, and its form is checked before anything is believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_events.codec import MAX_EVENT_BYTES
from esper_events.errors import SegmentError
from esper_events.keys import SigningKey
from esper_events.segment import (
    DOMAIN,
    GENESIS,
    MAX_SEGMENT_BYTES,
    open_segment,
    seal,
    segment_hash,
)

KEY = SigningKey.generate()
U63 = st.integers(0, 2**63 - 1)


def sealed(*events: bytes, log: str = "run-1", first_index: int = 0, epoch: int = 0) -> bytes:
    return seal(events, log=log, first_index=first_index, previous=GENESIS, key=KEY, epoch=epoch)


@given(
    st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=5),
    st.from_regex(r"[A-Za-z0-9._/-]{1,128}", fullmatch=True),
    U63,
    U63,
    st.binary(min_size=32, max_size=32),
)
def test_what_is_sealed_opens(
    events: list[bytes], log: str, first_index: int, epoch: int, previous: bytes
) -> None:
    data = seal(events, log=log, first_index=first_index, previous=previous, key=KEY, epoch=epoch)
    segment = open_segment(data)
    assert segment.events == tuple(events)
    assert (segment.log, segment.first_index, segment.epoch) == (log, first_index, epoch)
    assert (segment.previous, segment.key_id) == (previous, KEY.public.id)
    assert segment.is_signed_by(KEY.public)
    for position, event in enumerate(events):
        at = segment.event_byte(position)
        assert data[at : at + len(event)] == event


def test_the_signature_is_for_segments_alone() -> None:
    data = sealed(b"event")
    segment = open_segment(data)
    assert KEY.public.verify(segment.signature, DOMAIN + segment.signed)
    assert not KEY.public.verify(segment.signature, segment.signed)
    assert not segment.is_signed_by(SigningKey.generate().public)


def test_the_layout_is_the_documented_one() -> None:
    """Golden bytes: a reader in another language can be written from the table."""
    data = sealed(b"ab", b"c", log="r", first_index=5, epoch=2)
    assert data[:-64] == (
        b"esperseg"
        b"\x00\x01"
        + KEY.public.id
        + (2).to_bytes(8, "big")
        + (5).to_bytes(8, "big")
        + GENESIS
        + b"\x01r"
        + b"\x00\x00\x00\x02"
        + b"\x00\x00\x00\x02ab"
        + b"\x00\x00\x00\x01c"
    )


@pytest.mark.parametrize(
    ("events", "fields"),
    [
        ((), {}),
        ((b"",), {}),
        ((bytes(MAX_EVENT_BYTES + 1),), {}),
        ((bytes(MAX_EVENT_BYTES),) * 8, {}),
        ((b"x",), {"log": ""}),
        ((b"x",), {"log": "a b"}),
        ((b"x",), {"log": "a\n"}),
        ((b"x",), {"log": "é"}),
        ((b"x",), {"log": "a" * 129}),
        ((b"x",), {"first_index": -1}),
        ((b"x",), {"first_index": 2**63}),
        ((b"x",), {"epoch": -1}),
        ((b"x",), {"epoch": 2**64}),
    ],
)
def test_what_would_not_open_is_not_sealed(
    events: tuple[bytes, ...], fields: dict[str, object]
) -> None:
    with pytest.raises(SegmentError):
        sealed(*events, **fields)  # type: ignore[arg-type]
    with pytest.raises(SegmentError):
        seal([b"x"], log="r", first_index=0, previous=b"short", key=KEY)


def test_an_event_and_a_segment_of_the_largest_size_are_good() -> None:
    event = bytes(MAX_EVENT_BYTES)
    data = sealed(*(event,) * 7, bytes(MAX_EVENT_BYTES - 1000))
    assert len(data) <= MAX_SEGMENT_BYTES
    assert open_segment(data).events[0] == event
    with pytest.raises(SegmentError, match="at most"):
        open_segment(bytes(MAX_SEGMENT_BYTES + 1))


def test_every_cut_and_every_addition_is_refused() -> None:
    data = sealed(b"event", b"more")
    for length in range(len(data)):
        with pytest.raises(SegmentError):
            open_segment(data[:length])
    with pytest.raises(SegmentError, match="too many"):
        open_segment(data + b"\0")


def test_a_huge_count_is_refused_at_once() -> None:
    data = sealed(b"event")
    at = data.index(b"\x00\x00\x00\x01\x00\x00\x00\x05event")
    with pytest.raises(SegmentError, match="4294967295 events do not fit"):
        open_segment(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :])


@given(st.binary(max_size=400), st.booleans())
def test_noise_raises_only_the_declared_error(noise: bytes, behind_a_good_start: bool) -> None:
    with pytest.raises(SegmentError):
        open_segment(sealed(b"event")[:60] + noise if behind_a_good_start else noise)


@given(st.integers(0), st.binary(max_size=8), st.integers(0, 8))
def test_a_mutation_is_refused_or_loses_its_signature(at: int, new: bytes, cut: int) -> None:
    good = sealed(b"event", b"more")
    at %= len(good)
    bad = good[:at] + new + good[at + cut :]
    try:
        segment = open_segment(bad)
    except SegmentError:
        return
    assert bad == good or not segment.is_signed_by(KEY.public)
    assert bad == good or segment_hash(bad) != segment_hash(good)
