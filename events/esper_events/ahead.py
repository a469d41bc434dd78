"""Reading a long log on all cores: what can be told of segments to come is found out meanwhile.

The chain is followed in order, by one process, which refuses what it would refuse alone and names
the same fault. It takes a signature for checked when a helper checked the very bytes that it holds
under the very key that it then wants, and else checks it itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

from esper_events.any_chain import Chain
from esper_events.errors import ChainError
from esper_events.examine import Examined
from esper_events.framing import LENGTH
from esper_events.helper import Batch, Helper
from esper_events.segment import claimed_key

WORTH_SECONDS = 0.5
"""Logs that one core is through in less are read by one: starting another takes 0.1 s."""

_SEGMENT_SECONDS = 1.1e-4
_BYTE_SECONDS = 1e-8
_BATCH_SEGMENTS = 64
_BATCH_BYTES = 128 << 10
_AHEAD_BYTES = 32 << 20
_DEPTH = 3
"""Batches that a helper has before it, so that it never waits for the next."""
_WINDOW = 12
"""Batches that are looked ahead for each helper."""
_MOST_HELPERS = 7
"""Following the chain takes a seventh of what its signatures take: more would wait for it."""


def read_ahead(
    chain: Chain[Any, Any], frames: Iterator[tuple[int, bytes]], size: int
) -> Iterator[tuple[int, bytes, Examined | None]]:
    """Each of ``frames``, in order, as `Chain.accept` takes it: where its segment begins, the
    segment, and what was found of it before its turn.

    Args:
        chain: what accepts them; its keys are what signatures are checked under.
        frames: see `esper_events.framing.read_frames`.
        size: bytes of all of them, about, by which a log is long or short.

    Raises:
        ChainError, OSError: those of ``frames``, when it is their turn.
    """
    source = _Source(chain, frames)
    # The key of all that follows stands in the first.
    yield from _taken(source.next(1))
    sample = source.next()
    helpers = _start_helpers(sample, size)
    try:
        yield from _Ahead(source, helpers).read(sample)
    finally:
        for helper in helpers:
            helper.close()
    if source.fault is not None:
        raise source.fault


class _Source:
    """Batches of ``frames``; ``fault`` is what ended them."""

    def __init__(self, chain: Chain[Any, Any], frames: Iterator[tuple[int, bytes]]) -> None:
        self._chain = chain
        self._frames = frames
        self.fault: ChainError | OSError | None = None

    def next(self, most: int = _BATCH_SEGMENTS) -> Batch:
        """The next batch, empty at the end."""
        batch = Batch()
        try:
            for offset, data in self._frames:
                batch.add(offset + LENGTH.size, data, self._chain.writer(claimed_key(data)))
                if len(batch.segments) >= most or batch.size >= _BATCH_BYTES:
                    break
        except (ChainError, OSError) as error:
            self.fault = error
        return batch


class _Ahead:
    """What lies between the source and the chain."""

    def __init__(self, source: _Source, helpers: list[Helper]) -> None:
        self._source = source
        self._helpers = helpers
        self._pending: deque[Batch] = deque()
        self._open: deque[Batch] = deque()
        """Those of the pending ones that nobody was given."""

    def read(self, batch: Batch) -> Iterator[tuple[int, bytes, Examined | None]]:
        """``batch`` and all that follow it."""
        while batch.segments:
            if batch.found is None:
                self._complete(batch)
            yield from _taken(batch)
            self._fill()
            batch = self._pending.popleft() if self._pending else self._source.next()

    def _fill(self) -> None:
        ready = [helper for helper in self._helpers if helper.ready and not helper.lost]
        for helper in self._helpers:
            helper.exchange()
        held = sum(batch.size for batch in self._pending)
        while len(self._pending) < _WINDOW * len(ready) and held < _AHEAD_BYTES:
            batch = self._source.next()
            if not batch.segments:
                break
            held += batch.size
            self._pending.append(batch)
            self._open.append(batch)
        for helper in ready:
            while self._open and len(helper.given) < _DEPTH:
                helper.give(self._open.popleft())

    def _complete(self, batch: Batch) -> None:
        """See to it that what there is to find of ``batch`` is found, or left to the chain.

        Meanwhile other batches are examined here. A helper that takes longer than all of them is
        not waited for: the chain does without.
        """
        if batch in self._open:
            self._open.remove(batch)
            batch.leave()
        while batch.found is None and self._open:
            self._open.popleft().examine()
            for helper in self._helpers:
                helper.exchange()
        if batch.found is None:
            batch.leave()


def _taken(batch: Batch) -> Iterator[tuple[int, bytes, Examined | None]]:
    found = [None] * len(batch.places) if batch.found is None else batch.found
    return zip(batch.places, batch.segments, found, strict=True)


def _start_helpers(sample: Batch, size: int) -> list[Helper]:
    seconds = size * _BYTE_SECONDS
    if sample.size:
        seconds += size / sample.size * len(sample.segments) * _SEGMENT_SECONDS
    if seconds < WORTH_SECONDS or not sys.executable:
        return []
    helpers: list[Helper] = []
    with contextlib.suppress(OSError):  # as many as can be had
        while len(helpers) < min(cores() - 1, _MOST_HELPERS):
            helpers.append(Helper())
    return helpers


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
