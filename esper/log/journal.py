"""The local journal: one file of framed segments, synced to disk before it is acknowledged."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import count as numbers
from pathlib import Path

from esper.log.errors import ConflictError, JournalError, unwritten
from esper.log.locks import FileLock
from esper_events.files import sync_directory, sync_way, whole_file
from esper_events.framing import LENGTH, frame, longest_valid_prefix, read_frames

SEGMENTS = "segments"
_LOCK = "lock"


def writer_lock(directory: Path) -> FileLock:
    """Held by the one process that writes the journal in ``directory``; a file of its own, because
    the journal itself may be replaced."""
    return FileLock(directory / _LOCK)


class JournalStore:
    """Segments in ``directory/segments``, each behind its length in 4 bytes, big-endian.

    Opens at the longest valid prefix: what a crash left after it is moved to
    ``directory/torn-<n>``, never deleted. A failed write or sync is final for this object,
    because the kernel may have dropped the pages that it could not write.

    Raises ``ConflictError`` when another process writes here, ``JournalError`` when the
    directory cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / SEGMENTS
        self._lock = writer_lock(directory)
        self._failure: JournalError | None = None
        self._descriptor: int | None = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
            if not self._lock.acquire():
                raise ConflictError(
                    f"{self.path} is being written by another process: one run has one writer; "
                    "stop the other, or choose another run directory"
                )
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            self._ends = self._recover()
            sync_way(directory)
        except OSError as error:
            self.close()
            raise JournalError(f"cannot open the journal {self.path}: {error}") from error

    def _recover(self) -> list[int]:
        """Set a torn tail aside; the end offset of every valid frame, in bytes.

        The rest is synced: who wrote it may have been killed before that, and what is in the page
        cache alone would count here and be gone after a loss of power.
        """
        _, valid = longest_valid_prefix(self.path)
        descriptor = self._writable()
        size = os.fstat(descriptor).st_size
        if size > valid:
            self._keep_torn(os.pread(descriptor, size - valid, valid))
            os.ftruncate(descriptor, valid)
        os.fsync(descriptor)
        with self.path.open("rb") as file:
            return [at + LENGTH.size + len(segment) for at, segment in read_frames(file)]

    def _keep_torn(self, tail: bytes) -> None:
        free = next(n for n in numbers() if not (self.directory / f"torn-{n}").exists())
        with (self.directory / f"torn-{free}").open("xb") as file:
            file.write(tail)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(self.directory)

    @property
    def count(self) -> int:
        """Number of segments on disk."""
        return len(self._ends)

    def append(self, position: int, segment: bytes) -> None:
        """Write the segment and sync it; see ``Store.append``. Raises ``JournalError`` too."""
        if self._failure is not None:
            raise self._failure
        if position != self.count:
            raise ConflictError(f"{self.path}: got segment {position}, wanted {self.count}")
        descriptor = self._writable()
        start = self._ends[-1] if self._ends else 0
        framed = frame(segment)
        try:
            _write_all(descriptor, framed, start)
            os.fsync(descriptor)
        except OSError as error:
            self._failure = unwritten(f"the journal {self.path}", len(framed), error)
            self._discard_partial(start, self._failure)
            raise self._failure from error
        self._ends.append(start + len(framed))

    def _discard_partial(self, size: int, failure: JournalError) -> None:
        """Best effort: what stays is a torn tail, which the next opening sets aside."""
        try:
            os.ftruncate(self._writable(), size)
        except OSError as error:
            self._failure = type(failure)(f"{failure}; nor could it be cut back: {error}")

    def replace(self, segments: Iterable[bytes]) -> None:
        """Let ``segments`` take the place of all that is here, at once: a crash leaves the one or
        the other. Raises ``JournalError``, which is final for this object."""
        if self._failure is not None:
            raise self._failure
        before, ends = self._writable(), [0]
        try:
            for draft in self.directory.glob(f".{SEGMENTS}.*"):
                draft.unlink()  # What was killed while it wrote it.
            with whole_file(self.path, replace=True) as file:
                for segment in segments:
                    ends.append(ends[-1] + file.write(frame(segment)))
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            self._failure = JournalError(f"cannot replace the journal {self.path}: {error}")
            raise self._failure from error
        os.close(before)
        self._ends = ends[1:]

    def read(self, start: int = 0) -> Iterator[bytes]:
        """The segments from number ``start`` on; may run beside the writer."""
        with self.path.open("rb") as file:
            for position in range(start, self.count):
                begin = self._ends[position - 1] if position else 0
                file.seek(begin + LENGTH.size)
                size = self._ends[position] - begin - LENGTH.size
                segment = file.read(size)
                if len(segment) != size:
                    raise JournalError(f"{self.path}: segment {position} is cut short")
                yield segment

    def close(self) -> None:
        """Close the file and let the lock go."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
        self._lock.release()

    def _writable(self) -> int:
        if self._descriptor is None:
            raise JournalError(f"the journal {self.path} is closed")
        return self._descriptor


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    """``pwrite`` may write less than asked, for one at a size limit."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
