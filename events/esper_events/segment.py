"""A segment: one or more events, signed, and bound to the segment before it by hash.

Layout, all integers big-endian and unsigned:

======================  =====  ====================================================
field                   bytes  meaning
======================  =====  ====================================================
magic                   8      ``esperseg``
version                 2      1
key id                  17     algorithm byte 1 and 16 bytes of SHA-256 of the key
epoch                   8      lease epoch of the writer
first index             8      index in the log of the first event
previous                32     SHA-256 of the previous segment, zeros for the first
log id length, log id   1 + n  ASCII letters, digits, ``.``, ``_``, ``/``, ``-``
event count             4      at least 1
each event              4 + n  length and canonical encoding
signature               64     Ed25519 over `DOMAIN` and all bytes above
======================  =====  ====================================================

Every field has one spelling, so a segment has exactly one encoding: its bytes.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence

import msgspec

from esper_events.codec import MAX_EVENT_BYTES
from esper_events.errors import SegmentError
from esper_events.keys import SIGNATURE_BYTES, PublicKey, SigningKey

MAX_SEGMENT_BYTES = 8 << 20
"""Largest segment, in bytes; longer input is refused before it is read."""
GENESIS = bytes(32)
"""What the first segment of a log names as the one before it."""
DOMAIN = b"esper.segment.v1\x00"
"""Prefix of the signed bytes: a signature over a segment means nothing anywhere else."""

MAGIC = b"esperseg"
"""First bytes of every segment."""
_VERSION = 1
_HEADER = struct.Struct(">8sH17sQQ32sB")
_KEY_ID = slice(10, 27)
_COUNT = struct.Struct(">I")
_LOG_ID = re.compile(r"[A-Za-z0-9._/-]{1,128}")
_LAST_INDEX = (1 << 63) - 1


class Segment(msgspec.Struct, frozen=True):
    """The fields of a segment; ``signed`` is everything in it but the signature."""

    key_id: bytes
    epoch: int
    first_index: int
    previous: bytes
    log: str
    events: tuple[bytes, ...]
    signed: bytes
    signature: bytes

    def is_signed_by(self, key: PublicKey) -> bool:
        """Whether ``key`` made the signature."""
        return key.verify(self.signature, DOMAIN + self.signed)

    def event_byte(self, position: int) -> int:
        """Offset in the segment of the bytes of its event number ``position``, from 0."""
        start = _HEADER.size + len(self.log) + _COUNT.size
        return start + sum(_COUNT.size + len(e) for e in self.events[:position]) + _COUNT.size


def seal(
    events: Sequence[bytes],
    *,
    log: str,
    first_index: int,
    previous: bytes,
    key: SigningKey,
    epoch: int = 0,
) -> bytes:
    """The bytes of a segment that holds ``events`` (canonical encodings) and is signed by ``key``.

    Raises:
        SegmentError: no events, an event or the whole over its cap, or a field out of range.
    """
    if len(previous) != 32:
        raise SegmentError(f"got a previous hash of {len(previous)} bytes, wanted 32")
    if not 0 <= epoch < 1 << 64:
        raise SegmentError(f"got epoch {epoch}, wanted an unsigned 64-bit integer")
    _check(log, first_index, len(events))
    for event in events:
        _check_event_length(len(event), 0)
    name = log.encode("ascii")
    fields = (MAGIC, _VERSION, key.public.id, epoch, first_index, previous, len(name))
    parts = [_HEADER.pack(*fields), name, _COUNT.pack(len(events))]
    for event in events:
        parts += (_COUNT.pack(len(event)), event)
    signed = b"".join(parts)
    if len(signed) + SIGNATURE_BYTES > MAX_SEGMENT_BYTES:
        raise SegmentError(f"a segment of {len(signed)} bytes, at most {MAX_SEGMENT_BYTES}")
    return signed + key.sign(DOMAIN + signed)


def open_segment(data: bytes) -> Segment:
    """The fields of the segment ``data``. Checks the form; signature and chain are the caller's.

    Raises:
        SegmentError: ``data`` is over `MAX_SEGMENT_BYTES` or not exactly one segment.
    """
    if len(data) > MAX_SEGMENT_BYTES:
        raise SegmentError(f"a segment of {len(data)} bytes, at most {MAX_SEGMENT_BYTES}")
    end = len(data) - SIGNATURE_BYTES
    if end < _HEADER.size:
        raise SegmentError(f"{len(data)} bytes are too few for a segment")
    magic, version, key_id, epoch, first_index, previous, name_length = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise SegmentError("does not begin like a segment")
    if version != _VERSION:
        raise SegmentError(f"segment format {version}, this verifier knows {_VERSION}", 8)
    name_end = _HEADER.size + name_length
    if name_end + _COUNT.size > end:
        raise SegmentError("the log id does not fit", _HEADER.size)
    log = data[_HEADER.size : name_end].decode("latin-1")
    (count,) = _COUNT.unpack_from(data, name_end)
    _check(log, first_index, count)
    events = _split_events(data, name_end + _COUNT.size, end, count)
    signed, signature = data[:end], data[end:]
    return Segment(key_id, epoch, first_index, previous, log, events, signed, signature)


def signature_fits(data: bytes, key: PublicKey) -> bool:
    """Whether ``data`` ends with the signature of ``key`` over what stands before, as a segment
    does."""
    signed, signature = data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
    return len(signature) == SIGNATURE_BYTES and key.verify(signature, DOMAIN + signed)


def claimed_key(data: bytes) -> bytes:
    """The id of the key that the segment ``data`` says it is signed by, unchecked."""
    return data[_KEY_ID]


def segment_hash(data: bytes) -> bytes:
    """SHA-256 of a segment's exact bytes: what the next segment names as ``previous``."""
    return hashlib.sha256(data).digest()


def _split_events(data: bytes, start: int, end: int, count: int) -> tuple[bytes, ...]:
    # Every event takes a length and at least one byte: a huge count is refused at once.
    if count * (_COUNT.size + 1) > end - start:
        raise SegmentError(f"{count} events do not fit", start - _COUNT.size)
    events = []
    for _ in range(count):
        body = start + _COUNT.size
        if body > end:
            raise SegmentError("an event's length is cut off", start)
        (length,) = _COUNT.unpack_from(data, start)
        _check_event_length(length, start)
        if length > end - body:
            raise SegmentError(f"an event of {length} bytes does not fit", start)
        start = body + length
        events.append(data[body:start])
    if start != end:
        raise SegmentError(f"{end - start} bytes too many after the last event", start)
    return tuple(events)


def _check(log: str, first_index: int, count: int) -> None:
    if not _LOG_ID.fullmatch(log):
        raise SegmentError(
            f"got log id {log!r}, wanted 1 to 128 of letters, digits, '.', '_', '/' and '-'",
            _HEADER.size - 1,
        )
    if not 0 <= first_index <= _LAST_INDEX:
        raise SegmentError(f"got first index {first_index}, at most {_LAST_INDEX}", 35)
    if count < 1:
        raise SegmentError("a segment without events", _HEADER.size + len(log))


def _check_event_length(length: int, byte: int) -> None:
    if not 1 <= length <= MAX_EVENT_BYTES:
        raise SegmentError(f"an event of {length} bytes, wanted 1 to {MAX_EVENT_BYTES}", byte)
