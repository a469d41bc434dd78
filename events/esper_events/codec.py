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

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec

from esper_events.errors import CodecError
from esper_events.events import Event

MAX_EVENT_BYTES = 1 << 20
"""Largest encoded event, in bytes; longer input is refused before it is looked at."""

E = TypeVar("E")

_UNSUITABLE = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)
_encoder = msgspec.msgpack.Encoder(order="deterministic")


class Codec(Generic[E]):
    """Reads and writes the events of one catalogue, a union of structs with a ``kind``."""

    def __init__(self, catalogue: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[E] = msgspec.msgpack.Decoder(catalogue, strict=True)

    def encode(self, event: E) -> bytes:
        """The canonical bytes of ``event``.

        An integer in a float field is written as the float it equals.

        Raises:
            CodecError: a field holds something else than the catalogue says, or the event is larger
                than `MAX_EVENT_BYTES`.
        """
        try:
            checked = self._decoder.decode(_capped(_encoder.encode(event)))
            return _capped(_encoder.encode(checked))
        except _UNSUITABLE as error:
            raise CodecError(f"{type(event).__name__} cannot be encoded: {error}") from error

    def decode(self, data: bytes) -> E:
        """The event whose canonical encoding is ``data``.

        Raises:
            CodecError: ``data`` is too large, malformed, of an unknown kind, holds an unknown,
                missing or ill-typed field, or is not canonical.
        """
        try:
            event = self._decoder.decode(_capped(data))
            canonical = _encoder.encode(event)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise CodecError(f"not an event: {error}") from error
        if canonical != data:
            raise CodecError(
                "not the canonical encoding of its event "
                f"({len(data)} bytes, canonical are {len(canonical)})"
            )
        return event

    def decode_all(self, encoded: Sequence[bytes]) -> list[E]:
        """The events whose canonical encodings are ``encoded``: `decode` of each, in fewer steps.

        Raises:
            CodecError: `decode` refuses one of them.
        """
        if len(encoded) == 1:
            return [self.decode(encoded[0])]
        if max(map(len, encoded), default=0) > MAX_EVENT_BYTES:
            raise CodecError(f"one of {len(encoded)} events is over {MAX_EVENT_BYTES} bytes")
        try:
            events = list(map(self._decoder.decode, encoded))
            canonical = _encoder.encode(events)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise CodecError(f"one of {len(encoded)} is no event: {error}") from error
        # Each of ``encoded`` is one whole MessagePack object, and where an object ends follows from
        # its own bytes: two rows of as many objects are equal only one by one.
        if canonical != _array_header(len(encoded)) + b"".join(encoded):
            raise CodecError(f"one of {len(encoded)} events is not canonically encoded")
        return events


def _array_header(length: int) -> bytes:
    """What an array of ``length`` begins with."""
    nothing = _encoder.encode([None] * length)
    return nothing[: len(nothing) - length]


def _capped(data: bytes) -> bytes:
    if len(data) > MAX_EVENT_BYTES:
        raise CodecError(f"an event of {len(data)} bytes, at most {MAX_EVENT_BYTES} are allowed")
    return data


RUN_CODEC = Codec[Event](Event)
"""Of the events of runs."""

encode_event = RUN_CODEC.encode
decode_event = RUN_CODEC.decode
decode_events = RUN_CODEC.decode_all
