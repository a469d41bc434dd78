"""What a workspace has seen of a shared log: a file of its segments, held against the server's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from esper.log.errors import LogError
from esper.log.locks import FileLock
from esper_events.errors import ChainError
from esper_events.files import sync_directory
from esper_events.framing import LENGTH, frame, read_frames

_LOCK_SECONDS = 10.0


class SeenSegments:
    """The first segments of a shared log, in the file ``path``, framed as in a journal.

    Processes of one workspace share the file. Each adds what it was the first to see; a tail that a
    killed one left is overwritten by the next.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = self._end = 0
        """Segments, and bytes of their frames, that this object has read or written."""

    def load(self) -> list[bytes]:
        """The segments; raises ``LogError`` for a file that cannot be read."""
        self._count = self._end = 0
        try:
            with self.path.open("rb") as file:
                return self._read_on(file)
        except FileNotFoundError:
            return []
        except (ChainError, OSError) as error:
            raise LogError(f"{self.path}: {error}; {self.advice}") from error

    def _read_on(self, file: BinaryIO) -> list[bytes]:
        """What ``file`` holds beyond what was read before."""
        file.seek(self._end)
        segments = [segment for _, segment in read_frames(file, self._end, growing=True)]
        self._count += len(segments)
        self._end += sum(LENGTH.size + len(segment) for segment in segments)
        return segments

    @property
    def advice(self) -> str:
        """What a person can do who knows that the server, not this file, is right."""
        return f"if that is as it should be, move {self.path} away"

    def add(self, start: int, segments: Sequence[bytes]) -> None:
        """Make ``segments``, of which the first is number ``start``, durable, where they are not.

        Raises ``LogError`` when they cannot be written.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(self.path.with_suffix(".lock")) as lock:
                if not lock.acquire(timeout=_LOCK_SECONDS):
                    raise LogError(f"{self.path}: another process has been writing it")
                self._append(start, segments)
        except (ChainError, OSError) as error:
            raise LogError(f"{self.path}: cannot be written: {error}") from error

    def _append(self, start: int, segments: Sequence[bytes]) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            if os.fstat(descriptor).st_size < self._end:
                raise LogError(f"{self.path}: was moved away or cut by somebody else")
            self._read_on(file)
            new = b"".join(frame(segment) for segment in segments[max(0, self._count - start) :])
            if not new:
                return
            file.truncate(self._end)
            file.seek(self._end)
            file.write(new)
            file.flush()
            os.fsync(file.fileno())
        if self._count == 0:
            sync_directory(self.path.parent)
