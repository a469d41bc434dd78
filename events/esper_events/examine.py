"""What can be told of a segment apart from its log, and a process that tells it of many.

A signature, a hash and the leaves of the tree are functions of the segment's bytes and a key alone,
so another core may find them before the segment's turn. That the key is the right one and that the
segment follows the one before it is for `esper_events.chain` to say, in order.
"""

from __future__ import annotations

import contextlib
import signal
import struct
import sys
from typing import BinaryIO

import msgspec

from esper_events.errors import SegmentError
from esper_events.keys import PublicKey
from esper_events.merkle import leaf_hashes
from esper_events.segment import open_segment, segment_hash, signature_fits

LENGTH = struct.Struct(">I")
"""Of the message that follows."""


class Examined(msgspec.Struct, frozen=True, array_like=True):
    """What was found of a segment: whether the key ``key`` (32 bytes) made its signature, its hash,
    and the leaf hashes of its events; None where they are too few to be worth it."""

    key: bytes
    signed: bool
    hash: bytes
    leaves: list[bytes] | None


Question = list[tuple[bytes, bytes]]
"""Keys and the segments to be examined under them."""

_WORTH_BYTES = 4096
"""A shorter segment is taken apart by who follows the chain, who has to do so anyway."""


def examine(key: PublicKey, data: bytes) -> Examined:
    """What there is to say of the segment ``data`` under ``key``; its form is not judged here."""
    leaves = None
    if len(data) >= _WORTH_BYTES:
        with contextlib.suppress(SegmentError):
            leaves = leaf_hashes(open_segment(data).events)
    return Examined(key.raw, signature_fits(data, key), segment_hash(data), leaves)


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer one `Question` after the other, each behind its length, until ``source`` ends.

    A length of 0 goes before all: who asks need not wait for a process that is still starting.
    """
    questions = msgspec.msgpack.Decoder(Question)
    keys: dict[bytes, PublicKey] = {}
    sink.write(LENGTH.pack(0))
    sink.flush()
    while len(prefix := source.read(LENGTH.size)) == LENGTH.size:
        found = []
        for raw, data in questions.decode(source.read(*LENGTH.unpack(prefix))):
            if raw not in keys:
                keys[raw] = PublicKey(raw)
            found.append(examine(keys[raw], data))
        answer = msgspec.msgpack.encode(found)
        sink.write(LENGTH.pack(len(answer)) + answer)
        sink.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks ends this, by closing the pipe
    serve(sys.stdin.buffer, sys.stdout.buffer)
