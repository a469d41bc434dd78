"""Putting a damaged stream of the embedded server out of its way, so that it can be sent again.

No client of that server may delete a stream or a message of one, and nothing here does: the server
is stopped and the stream's files are moved, to be looked at.
"""

from __future__ import annotations

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


def set_aside(directory: Path, stream: str) -> Path | None:
    """Move ``stream`` of the embedded server in ``directory`` to ``directory/damaged``; its new
    place, None where it has no files.

    The server must be free to end: whoever asks has closed its share.

    Raises ``ServerError`` while other runs use the server, or when the files cannot be moved.
    """
    try:
        with (
            FileLock(directory / "start.lock") as start,
            FileLock(directory / "server.lock") as use,
        ):
            if not (start.acquire(timeout=_STOP_SECONDS) and use.acquire(timeout=_STOP_SECONDS)):
                raise ServerError(
                    f"{directory}: the server is in use by other runs; repair when they have ended"
                )
            return _move(directory / STREAMS / stream, directory / DAMAGED)
    except OSError as error:
        raise ServerError(f"{directory}: cannot set stream {stream} aside: {error}") from error


def _move(files: Path, target: Path) -> Path | None:
    if not files.exists():
        return None
    target.mkdir(mode=0o700, exist_ok=True)
    names = (target / f"{files.name}-{number}" for number in numbers())
    free = next(path for path in names if not path.exists())
    files.rename(free)
    sync_directory(target)
    sync_directory(files.parent)
    return free
