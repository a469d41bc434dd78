"""Files that appear whole or not at all, durably; and files that only their owner can read."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from esper_events.errors import KeyFileError


@contextmanager
def whole_file(path: Path, mode: int = 0o644, replace: bool = False) -> Iterator[BinaryIO]:
    """A file to write that takes the name ``path`` when the block ends without an exception.

    Args:
        mode: permissions of the file, from its first byte on.
        replace: whether an existing file gives way.

    Raises:
        FileExistsError: ``path`` exists and ``replace`` is False.
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            # A link, unlike a rename, never takes the place of another file.
            path.hardlink_to(temporary)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make the names in the directory ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_way(directory: Path) -> None:
    """Make the names in ``directory`` durable, and its own and those of all directories above it,
    whoever made them; one that this process may not read is somebody else's to have synced."""
    directory = directory.absolute()
    sync_directory(directory)
    for above in directory.parents:
        with suppress(PermissionError):
            sync_directory(above)


def read_private(path: Path, limit: int) -> bytes:
    """At most ``limit`` bytes of the file at ``path``, which nobody but its owner, who asks, can
    reach.

    Raises:
        KeyFileError: there is none, or others could read or write it.
    """
    try:
        # O_NONBLOCK: opening a pipe must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileError(f"{path} is not a regular file")
            if status.st_uid != os.geteuid():
                raise KeyFileError(f"{path} belongs to user {status.st_uid}, wanted {os.geteuid()}")
            if status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise KeyFileError(f"{path} has mode {mode:04o}, wanted 0600: chmod 600 {path}")
            return file.read(limit)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error}") from error
