"""Bytes that events name by their SHA-256, each in a file of the run that carries it as its name.

An object is durable before any event that names it is appended, so that what a log names is not
lost in a crash. The same bytes are kept once.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from pathlib import Path

from esper_events.codec import decode_event
from esper_events.events import CheckpointWritten, ControllerConsulted, Record
from esper_events.files import sync_directory, whole_file
from esper_events.segment import open_segment

DIRECTORY = "objects"
CHECKPOINTS = "checkpoints"
KEPT_CHECKPOINTS = 2
"""Checkpoints that stay, here and on the server; the oldest goes when a newer one is on record."""
MAX_OBJECT_BYTES = 64 << 20
"""Largest object that is read back, in bytes."""


class ObjectError(Exception):
    """An object is not what its name says, or cannot be read."""


class ObjectMissingError(ObjectError):
    """There is no such object."""


def digest_of(data: bytes) -> str:
    """The name of ``data``: its SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def path_of(directory: Path, digest: str) -> Path:
    """The file of an object in the directory of objects."""
    return directory / f"sha256-{digest}"


def checkpoint_name(step: int) -> str:
    """The file of the checkpoint of ``step`` in `CHECKPOINTS`; names sort as steps do."""
    return f"{step:09}.safetensors"


def named_checkpoints(records: Iterable[Record]) -> list[CheckpointWritten]:
    """Those that the log names, by step; of one step the last that it names."""
    told = (r.event for r in records if isinstance(r.event, CheckpointWritten))
    return sorted({event.step: event for event in told}.values(), key=lambda event: event.step)


def named_objects(records: Iterable[Record]) -> list[str]:
    """The digests of the objects that the log names, each once, in its order."""
    asked = (r.event for r in records if isinstance(r.event, ControllerConsulted))
    return list(dict.fromkeys(d for event in asked for d in (event.policy, event.consultation)))


def named_in(segment: bytes) -> list[str]:
    """Those that a segment names, which is whole."""
    return named_objects(Record(0, decode_event(event)) for event in open_segment(segment).events)


class ObjectWriter:
    """Keeps objects in ``directory``, which is made with the first.

    Any thread may `take` them; one thread calls `write`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._taken: list[bytes] = []
        self._durable: set[str] = set()

    def take(self, data: bytes) -> None:
        """Have ``data`` written by the next `write`."""
        with self._lock:
            self._taken.append(data)

    def write(self) -> list[str]:
        """Make what was taken durable; the digests of what this writer had not written before.
        What lies under its name and is something else gives way.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            taken, self._taken = self._taken, []
        return [digest for data in taken if (digest := self._write(data))]

    def _write(self, data: bytes) -> str:
        digest = digest_of(data)
        if digest in self._durable:
            return ""
        if not self._durable:
            self._directory.mkdir(exist_ok=True)
            sync_directory(self._directory.parent)
        with whole_file(path_of(self._directory, digest), replace=True) as file:
            file.write(data)
        self._durable.add(digest)
        return digest


def read_object(directory: Path, digest: str) -> bytes:
    """The bytes that have this digest.

    Raises:
        ObjectMissingError: there is no file of that name.
        ObjectError: the file holds something else, or cannot be read.
    """
    path = path_of(directory, digest)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_OBJECT_BYTES + 1)
    except FileNotFoundError as error:
        raise ObjectMissingError(f"{path} is missing") from error
    except OSError as error:
        raise ObjectError(f"{path} cannot be read: {error.strerror or error}") from error
    found = digest_of(data)
    if found != digest:
        raise ObjectError(f"{path} holds something else, its digest is {found[:12]}")
    return data
