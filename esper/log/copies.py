"""The copy of a run's objects and checkpoints on the server, level with what lies in its files."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from esper.log.bucket import ObjectBucket
from esper.log.circuit import Circuit, State
from esper.log.errors import LogError
from esper.log.jetstream import JetStreamStore
from esper.log.objects import (
    CHECKPOINTS,
    DIRECTORY,
    KEPT_CHECKPOINTS,
    checkpoint_name,
    named_checkpoints,
    named_objects,
    path_of,
)
from esper_events.events import Record

_COOLDOWN_SECONDS = 20.0

Brought = Literal["sent", "fetched", "there", "missing"]


class ObjectSource(Protocol):
    """Where the server is that has the copies."""

    @property
    def name(self) -> str:
        """For people and for events; without credentials."""

    def connect(self) -> JetStreamStore:
        """A fresh connection, by the run's own stream; raises ``LogError``."""


def bring(bucket: ObjectBucket, there: set[str], path: Path, digest: str) -> Brought:
    """Have the bytes of this digest both in the file ``path`` and in ``bucket``, which has
    ``there``; from which to which they had to be copied.

    Raises ``LogError`` or ``OSError``.
    """
    if not _is_whole(path, digest):
        return "fetched" if digest in there and bucket.fetch(digest, path) else "missing"
    if digest in there:
        return "there"
    bucket.put(digest, path)
    there.add(digest)
    return "sent"


def complete(bucket: ObjectBucket, run_dir: Path, records: Sequence[Record]) -> Counter[Brought]:
    """Have on both sides what ``records`` name: every object, and the newest checkpoints.

    Raises ``LogError`` or ``OSError``.
    """
    there, directory = bucket.digests(), run_dir / DIRECTORY
    files = [(path_of(directory, digest), digest) for digest in named_objects(records)]
    files += [
        (run_dir / CHECKPOINTS / checkpoint_name(event.step), event.file)
        for event in named_checkpoints(records)[-KEPT_CHECKPOINTS:]
    ]
    return Counter(bring(bucket, there, path, digest) for path, digest in files)


def _is_whole(path: Path, digest: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except FileNotFoundError:
        return False


class ObjectCopies:
    """Copies objects to the server, or from it where only the server has them.

    The run goes on whatever becomes of that: what fails opens ``circuit``, and is tried again when
    some time has gone by. With ``first`` a segment waits for the objects that it names.
    ``on_change`` hears when the copy falls behind and when it is level again, and why.
    """

    def __init__(
        self,
        source: ObjectSource,
        run_dir: Path,
        *,
        first: bool,
        on_change: Callable[[Literal["lagging", "level"], int, str], None],
    ) -> None:
        self.first = first
        self.circuit = Circuit(1, _COOLDOWN_SECONDS, self._note)
        self._source = source
        self._directory = run_dir / DIRECTORY
        self._on_change = on_change
        self._todo: deque[str] = deque()
        self._history: deque[str] = deque()
        self._lagging = False
        self._lock = threading.Lock()
        self._store: JetStreamStore | None = None
        self._bucket: ObjectBucket | None = None
        self._there: set[str] = set()

    def add(self, digests: Iterable[str]) -> None:
        """Objects that segments name which the server does not have yet."""
        self._todo.extend(digests)

    def add_history(self, digests: Iterable[str]) -> None:
        """Objects that the log has named before, and that one side may lack."""
        self._history.extend(digests)

    def deliver(self) -> None:
        """Bring all that was added, as far as the server lets it; on the replica's thread."""
        while self._todo and self._bring_next(self._todo):
            pass

    def look_after(self, idle: Callable[[], bool]) -> None:
        """The same of history, while the replica has nothing else to do."""
        while self._history and idle() and self._bring_next(self._history):
            pass

    def _bring_next(self, queue: deque[str]) -> bool:
        if not self._allowed():
            return False
        try:
            bucket, path = self._opened(), path_of(self._directory, queue[0])
            bring(bucket, self._there, path, queue[0])
        except (LogError, OSError) as error:
            self.close()
            self._failed(error)
            return False
        queue.popleft()
        self._succeeded()
        return True

    def _opened(self) -> ObjectBucket:
        if self._bucket is None:
            self._store = self._source.connect()
            self._bucket = self._store.objects()
            self._there = self._bucket.digests()
        return self._bucket

    def close(self) -> None:
        """Let the connection go."""
        store, self._store, self._bucket = self._store, None, None
        if store is not None:
            store.close()

    def send(self, digest: str, path: Path) -> bool:
        """Copy a file, however long that takes; whether it is there now. One that is gone by then
        was not to be kept."""

        def work(bucket: ObjectBucket) -> bool:
            there = digest in bucket.digests()
            if not there and path.exists():
                bucket.put(digest, path)
                there = True
            return there

        return self._attempt(work)

    def fetch(self, digest: str, path: Path) -> bool:
        """Write the object's bytes to the file ``path``, which somebody waits for; whether that
        came about."""
        return self._attempt(lambda bucket: bucket.fetch(digest, path), anyway=True)

    def remove(self, digests: Iterable[str]) -> None:
        """Objects that nobody needs any more."""

        def work(bucket: ObjectBucket) -> bool:
            for digest in bucket.digests().intersection(digests):
                bucket.delete(digest)
            return True

        self._attempt(work)

    def _attempt(self, work: Callable[[ObjectBucket], bool], *, anyway: bool = False) -> bool:
        """``work`` on a connection of its own, from any thread; False when it cannot be."""
        if not (self._allowed() or anyway):
            return False
        try:
            store = self._source.connect()
            try:
                done = work(store.objects())
            finally:
                store.close()
        except (LogError, OSError) as error:
            self._failed(error)
            return False
        self._succeeded()
        return done

    def _allowed(self) -> bool:
        with self._lock:
            return self.circuit.allows(time.monotonic())

    def _failed(self, error: Exception) -> None:
        with self._lock:
            self.circuit.failed(time.monotonic(), str(error))

    def _succeeded(self) -> None:
        with self._lock:
            self.circuit.succeeded()
            if self._lagging and not self._todo:
                self._lagging = False
                self._on_change("level", 0, "")

    def _note(self, state: State, reason: str) -> None:
        if state == "open" and not self._lagging:
            self._lagging = True
            self._on_change("lagging", len(self._todo), reason)
