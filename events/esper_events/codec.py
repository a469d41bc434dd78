"""The one encoding of an event: MessagePack, and of all its spellings only the canonical one.

Canonical means: the struct's fields in the order of the struct with ``kind`` first, every field
present but one that is unset, maps sorted by key, integers in their shortest form, floats as eight
bytes. Bytes whose re-encoding differs are refused, so an event has exactly one encoding and an
encoding exactly one meaning.

Floats keep their bits: infinities, negative zero and every NaN survive as they were measured. A
NaN is not normalised (two NaNs with different payloads are two different figures, each canonical
for itself), because a log records what was seen; no fold compares NaNs.
"""

from __future__ import annotations

import msgspec

from esper_events.errors import CodecError
from esper_events.events import Event

MAX_EVENT_BYTES = 1 << 20
"""Largest encoded event, in bytes; longer input is refused before it is looked at."""

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event, strict=True)


def encode_event(event: Event) -> bytes:
    """The canonical bytes of ``event``.

    An integer in a float field is written as the float it equals.

    Raises:
        CodecError: a field holds something else than the catalogue says, or the event is larger
            than `MAX_EVENT_BYTES`.
    """
    try:
        return _capped(_encoder.encode(_decoder.decode(_capped(_encoder.encode(event)))))
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CodecError(f"{type(event).__name__} cannot be encoded: {error}") from error


def decode_event(data: bytes) -> Event:
    """The event whose canonical encoding is ``data``.

    Raises:
        CodecError: ``data`` is too large, malformed, of an unknown kind, holds an unknown, missing
            or ill-typed field, or is not canonical.
    """
    try:
        event = _decoder.decode(_capped(data))
        canonical = _encoder.encode(event)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CodecError(f"not an event: {error}") from error
    if canonical != data:
        raise CodecError(
            "not the canonical encoding of its event "
            f"({len(data)} bytes, canonical are {len(canonical)})"
        )
    return event


def _capped(data: bytes) -> bytes:
    if len(data) > MAX_EVENT_BYTES:
        raise CodecError(f"an event of {len(data)} bytes, at most {MAX_EVENT_BYTES} are allowed")
    return data
