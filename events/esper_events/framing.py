"""The journal file: segments one after the other, each behind its length.

A frame is a 4-byte big-endian length, 1 to `MAX_SEGMENT_BYTES`, and that many bytes of segment.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from esper_events.errors import ChainError, SegmentError
from esper_events.newer import AuditVerifier
from esper_events.segment import MAX_SEGMENT_BYTES

JOURNAL = Path("journal") / "segments"
"""Where a run's journal lies in its directory."""
LENGTH = struct.Struct(">I")
END = b"\xff\xff\xff\xff"
"""Ends the frames of a file that goes on with something else (an export).

No length that a frame may have is a single flipped bit away from it.
"""


def frame(segment: bytes) -> bytes:
    """The bytes by which ``segment`` stands in a journal.

    Raises:
        SegmentError: the segment is empty or over `MAX_SEGMENT_BYTES`.
    """
    if not 1 <= len(segment) <= MAX_SEGMENT_BYTES:
        raise SegmentError(f"a segment of {len(segment)} bytes, wanted 1 to {MAX_SEGMENT_BYTES}")
    return LENGTH.pack(len(segment)) + segment


def read_frames(
    source: BinaryIO | bytes,
    at: int = 0,
    terminated: bool = False,
    *,
    number: int = 0,
    growing: bool = False,
) -> Iterator[tuple[int, bytes]]:
    """Each frame of ``source`` as its byte offset and its segment's bytes.

    Args:
        source: bytes, or a binary file that is read from where it stands.
        at: offset that ``source`` begins at, for what is reported.
        terminated: the frames end at `END` (else at the end of ``source``).
        number: number of the segment that ``source`` begins with, for what is reported.
        growing: ``source`` is being written, so that a frame of which the end is not there yet is
            left for later.

    Raises:
        ChainError: a frame is cut off or claims an impossible length. Nothing over the cap is read.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    while True:
        prefix = file.read(LENGTH.size)
        if not prefix and not terminated:
            return
        if growing and len(prefix) < LENGTH.size:
            return
        if len(prefix) < LENGTH.size:
            raise ChainError("the file ends where a segment's length is due", number, at)
        if prefix == END and terminated:
            return
        (length,) = LENGTH.unpack(prefix)
        if not 1 <= length <= MAX_SEGMENT_BYTES:
            reason = f"a segment of {length} bytes is claimed, wanted 1 to {MAX_SEGMENT_BYTES}"
            raise ChainError(reason, number, at)
        segment = file.read(length)
        if growing and len(segment) < length:
            return
        if len(segment) < length:
            reason = f"the file ends inside a segment: {len(segment)} of {length} bytes"
            raise ChainError(reason, number, at)
        yield at, segment
        at += LENGTH.size + length
        number += 1


def longest_valid_prefix(path: Path) -> tuple[int, int]:
    """Segments and bytes of the journal ``path`` up to the first that is refused.

    What lies behind is a torn write of a crash, or damage; it is never part of the log. What a
    newer version wrote is none of both. The key is taken from the log itself.

    Raises:
        OSError: the file cannot be read.
    """
    verifier = AuditVerifier()
    valid = 0
    with path.open("rb") as file:
        try:
            for offset, segment in read_frames(file):
                verifier.accept(segment, offset + LENGTH.size)
                valid = offset + LENGTH.size + len(segment)
        except ChainError:
            pass
    return verifier.segments, valid
