"""Advisory file locks that end with their holder, however it dies.

A lock lives in an open file description: the kernel drops it when the last descriptor of it is
closed, also by ``kill -9``. So a lock is released by closing, never by ``LOCK_UN``, which would
take it from a process that was handed the descriptor. A forked child closes its copies, or a
data-loading worker would keep its dead parent's lock.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from pathlib import Path

_POLL_SECONDS = 0.01


class FileLock:
    """One ``flock`` on ``path``, which is created (mode 0600) when it does not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        _OPEN.add(self)

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    @property
    def descriptor(self) -> int:
        """The descriptor that carries the lock, to hand to a child process."""
        if self._descriptor is None:
            raise ValueError(f"the lock {self.path} is not held")
        return self._descriptor

    def acquire(self, *, shared: bool = False, timeout: float = 0.0) -> bool:
        """Take the lock, waiting at most ``timeout`` seconds; False when it was not free."""
        if self.held:
            return True
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + timeout
        while not _try_lock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return False
            time.sleep(_POLL_SECONDS)
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Close this holder's descriptor; safe to call twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _try_lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


_OPEN: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _release_in_child() -> None:
    for lock in list(_OPEN):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)
