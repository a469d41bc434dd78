"""Putting a damaged stream of the embedded server out of its way, so that it can be sent again.

No client of that server may delete a stream or a message of one, and nothing here does: the server
is stopped and the stream's files are moved, to be looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count as numbers
from pathlib import Path

from esper.log.errors import ServerError
from esper.log.locks import FileLock
from esper_events.files import sync_directory

STREAMS = Path("store") / "jetstream" / "ESPER" / "streams"
"""Where the embedded server keeps the streams of its clients' account."""
DAMAGED = "damaged"
"""Where streams are moved to, in the directory of the server."""

_STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Kept:
    """The files of a stream of the server in ``directory``, moved from ``before`` to ``now``."""

    directory: Path
    before: Path
    now: Path

    def put_back(self) -> None:
        """Have them where they were. Raises ``ServerError``."""
        with _stopped(self.directory):
            self.now.rename(self.before)


def set_aside(directory: Path, stream: str) -> Kept | None:
    """Move ``stream`` of the embedded server in ``directory`` to ``directory/damaged``; None where
    it has no files.

    The server must be free to end: whoever asks has closed its share.

    Raises ``ServerError`` while other runs use the server, or when the files cannot be moved.
    """
    before, damaged = directory / STREAMS / stream, directory / DAMAGED
    with _stopped(directory):
        if not before.exists():
            return None
        damaged.mkdir(mode=0o700, exist_ok=True)
        names = (damaged / f"{stream}-{number}" for number in numbers())
        now = next(path for path in names if not path.exists())
        before.rename(now)
        sync_directory(damaged)
        sync_directory(before.parent)
        return Kept(directory, before, now)


@contextmanager
def _stopped(directory: Path) -> Iterator[None]:
    """Nobody starts or uses the server in ``directory`` in the block."""
    try:
        with (
            FileLock(directory / "start.lock") as start,
            FileLock(directory / "server.lock") as run,
        ):
            if not (start.acquire(timeout=_STOP_SECONDS) and run.acquire(timeout=_STOP_SECONDS)):
                raise ServerError(
                    f"{directory}: the server is in use by other runs; repair when they have ended"
                )
            yield
    except OSError as error:
        raise ServerError(f"{directory}: cannot move the files of a stream: {error}") from error
