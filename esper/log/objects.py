"""Bytes that events name by their SHA-256, each in a file of the run that carries it as its name.

An object is durable before any event that names it is appended, so that what a log names is not
lost in a crash. The same bytes are kept once.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from esper_events.files import sync_directory, whole_file

DIRECTORY = "objects"
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


class ObjectWriter:
    """Keeps objects in ``directory``, which is made with the first. Not thread safe."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._durable: set[str] = set()

    def keep(self, data: bytes) -> None:
        """Make ``data`` durable, unless this writer has done so before; what lies under its name
        and is something else gives way.

        Raises:
            OSError: it cannot be written.
        """
        digest = digest_of(data)
        if digest in self._durable:
            return
        if not self._durable:
            self._directory.mkdir(exist_ok=True)
            sync_directory(self._directory.parent)
        with whole_file(path_of(self._directory, digest), replace=True) as file:
            file.write(data)
        self._durable.add(digest)


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
