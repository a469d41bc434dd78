"""What a workspace has seen of a shared log: a file of its segments, held against the server's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from esper.log.errors import LogError
from esper.log.locks import FileLock
from esper_events.errors import ChainError
from esper_events.files import sync_directory
from esper_events.framing import frame, read_frames

_LOCK_SECONDS = 10.0


class SeenSegments:
    """The first segments of a shared log, in the file ``path``, framed as in a journal.

    Processes of one workspace share the file. Each adds what it was the first to see; a tail that a
    killed one left is overwritten by the next.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> list[bytes]:
        """The segments; raises ``LogError`` for a file that cannot be read."""
        try:
            with self.path.open("rb") as file:
                return [segment for _, segment in read_frames(file, growing=True)]
        except FileNotFoundError:
            return []
        except (ChainError, OSError) as error:
            raise LogError(f"{self.path}: {error}; {self.advice}") from error

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
        except OSError as error:
            raise LogError(f"{self.path}: cannot be written: {error}") from error

    def _append(self, start: int, segments: Sequence[bytes]) -> None:
        held = self.load()
        end = sum(len(frame(segment)) for segment in held)
        new = segments[len(held) - start :] if len(held) >= start else ()
        if not new:
            return
        with self.path.open("r+b" if self.path.exists() else "xb") as file:
            file.truncate(end)
            file.seek(end)
            file.write(b"".join(frame(segment) for segment in new))
            file.flush()
            os.fsync(file.fileno())
        sync_directory(self.path.parent)
