"""A store in memory, for tests and for loops that need no durability."""

from __future__ import annotations

from collections.abc import Iterator

from esper.log.errors import ConflictError


class MemoryStore:
    """Segments in a list, which may be shared by several stores to stand for one medium."""

    def __init__(self, segments: list[bytes] | None = None) -> None:
        self._segments: list[bytes] = [] if segments is None else segments

    @property
    def count(self) -> int:
        """Number of segments held."""
        return len(self._segments)

    def append(self, position: int, segment: bytes) -> None:
        """Keep ``segment`` as number ``position``; ``ConflictError`` when that is not next."""
        if position != len(self._segments):
            raise ConflictError(
                f"memory store: got segment {position}, wanted {len(self._segments)}: "
                "another writer has appended"
            )
        self._segments.append(bytes(segment))

    def read(self, start: int = 0) -> Iterator[bytes]:
        """The segments from number ``start`` on."""
        for position in range(start, len(self._segments)):
            yield self._segments[position]

    def check(self) -> None:
        """Memory is always there."""

    def refresh(self) -> int:
        """The number of segments held."""
        return self.count

    def close(self) -> None:
        """Nothing to let go of; the segments stay readable."""
