"""Keeps the server's copy of a log level with the journal, for as long as the run lasts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from esper.log.copies import ObjectCopies
from esper.log.errors import ConflictError, FencedError, LogError
from esper.log.fence import fence_between
from esper.log.objects import named_in
from esper.log.store import RemoteStore, Store, StoreSource

_FIRST_RETRY_SECONDS = 0.05
_LONGEST_RETRY_SECONDS = 2.0
_CHECK_SECONDS = 1.0
_LOOK_SECONDS = 5.0
_AWAY_SECONDS = 3.0
"""How long a server that is known to be away may take to answer, when the log closes."""
_LEAVE_SECONDS = 0.5

OnLevel = Callable[[RemoteStore, bool], None]

Standing = Literal["none", "connecting", "level", "lagging"]


@dataclass(frozen=True)
class ReplicaState:
    """Where the copy stands: ``behind`` segments are not on the server, for ``reason``."""

    standing: Standing
    behind: int
    reason: str = ""


NO_REPLICA = ReplicaState("none", 0)


class Replica:
    """Ships the journal's segments in order, on a thread of its own, and never gives up.

    ``on_change`` hears when the copy falls behind and when it is level again; ``on_shipped``
    hears how many segments the server has acknowledged; ``on_level`` is given the store whenever it
    has all that there is, and told whether that is the end. ``on_fenced`` is given where the stream
    is the run's history: it hears that another writer has the run, and nothing is shipped any more.
    All are called on the replica's thread, which works ``copies`` as well.
    """

    def __init__(
        self,
        source: StoreSource,
        journal: Store,
        *,
        on_change: Callable[[ReplicaState], None],
        on_shipped: Callable[[int], None],
        on_level: OnLevel | None = None,
        on_fenced: Callable[[FencedError], None] | None = None,
        copies: ObjectCopies | None = None,
    ) -> None:
        self.name = source.name
        self._source = source
        self._journal = journal
        self._on_change = on_change
        self._on_shipped = on_shipped
        self._on_level = on_level
        self._on_fenced = on_fenced
        self._copies = copies
        self._changed = threading.Condition()
        self._stopping = False
        self._hurried = False
        self._connected = False
        self._attempts = 0
        self._failed = 0
        """The last attempt to follow that came to nothing."""
        self._shipped = 0
        self._look_due = 0.0
        self._standing: Standing = "connecting"
        self._reason = ""
        self._thread = threading.Thread(target=self._run, name="esper-replica", daemon=True)
        self._thread.start()

    @property
    def state(self) -> ReplicaState:
        """Where the copy stands now."""
        return ReplicaState(self._standing, self._journal.count - self._shipped, self._reason)

    def wake(self) -> None:
        """The journal has grown."""
        with self._changed:
            self._changed.notify_all()

    def finish(self, timeout: float) -> None:
        """Wait at most ``timeout`` seconds for the copy to be level, then stop.

        Sooner, when the server is away: an attempt that is begun now and fails is the last one.
        """
        deadline = time.monotonic() + max(0.0, timeout)
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            begun = self._attempts

            def over() -> bool:
                level = self._shipped >= self._journal.count
                return level or self._failed > begun or self._stopping

            if self._standing == "lagging":
                answered = min(timeout, _AWAY_SECONDS)
                self._changed.wait_for(lambda: self._connected or over(), max(0.0, answered))
            if self._connected or self._standing != "lagging":
                self._changed.wait_for(over, max(0.0, deadline - time.monotonic()))
            self._stopping = True
            self._changed.notify_all()
            # A thread that still waits for a connection holds nothing that must be let go.
            patience = deadline - time.monotonic() if self._connected else _LEAVE_SECONDS
        self._thread.join(max(_LEAVE_SECONDS, patience))

    def _run(self) -> None:
        delay = _FIRST_RETRY_SECONDS
        while not self._stopping:
            before = self._shipped
            self._attempts += 1
            try:
                self._follow()
            except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on without
                with self._changed:
                    self._failed = self._attempts
                    self._changed.notify_all()
                if isinstance(error, FencedError) and self._on_fenced is not None:
                    self._give_up(error, self._on_fenced)
                    break
                if self._shipped > before:
                    delay = _FIRST_RETRY_SECONDS
                self._fall_behind(error)
                self._pause(delay)
                delay = min(2 * delay, _LONGEST_RETRY_SECONDS)
        if self._copies is not None:
            self._copies.close()
        self._source.close()

    def _give_up(self, error: FencedError, tell: Callable[[FencedError], None]) -> None:
        with self._changed:
            self._standing, self._reason = "lagging", str(error)
            self._stopping = True
            self._changed.notify_all()
        tell(error)

    def _follow(self) -> None:
        """Ship over one connection until the run stops or the connection fails."""
        store = self._source.connect()
        try:
            self._connected = True
            try:
                self._compare(store)
            except ConflictError as error:
                fence = None if self._on_fenced is None else fence_between(self._journal, store)
                raise (fence or error) from error
            if self._copies is not None:
                for segment in self._journal.read(store.count):
                    self._copies.add(named_in(segment))
            while not self._stopping:
                self._ship(store)
                self._rest(store)
            self._tell_level(store, last=True)
        finally:
            self._connected = False
            store.close()

    def _compare(self, store: RemoteStore) -> None:
        """What the server already holds must end as our journal does up to there."""
        held = store.count
        if held > self._journal.count:
            raise ConflictError(
                f"{self.name}: the server holds {held} segments of this run, the journal "
                f"{self._journal.count}: another writer has this run"
            )
        if held and next(store.read(held - 1)) != next(self._journal.read(held - 1)):
            raise ConflictError(
                f"{self.name}: segment {held - 1} on the server is not the journal's: another "
                "writer has this run, or the store was replaced"
            )
        self._advance(held)

    def _ship(self, store: RemoteStore) -> None:
        for segment in self._journal.read(store.count):
            if self._stopping:
                return
            if self._copies is not None and self._copies.first:
                self._copies.deliver()
            store.append(store.count, segment)
            self._advance(store.count)
        if store.count == self._journal.count:
            self._be_level()
        if self._copies is not None:
            self._copies.deliver()
            self._copies.look_after(
                lambda: not self._stopping and self._journal.count == store.count
            )
        self._tell_level(store, last=False)

    def _tell_level(self, store: RemoteStore, *, last: bool) -> None:
        if self._on_level is not None and 0 < store.count == self._journal.count:
            self._on_level(store, last)

    def _advance(self, count: int) -> None:
        with self._changed:
            self._shipped = count
            self._changed.notify_all()
        self._on_shipped(count)

    def _rest(self, store: RemoteStore) -> None:
        """Wait for the journal to grow; look now and then whether the server is there, and whether
        the stream has grown that only this process may let grow."""
        with self._changed:
            if not self._stopping and self._journal.count == store.count:
                self._changed.wait(_CHECK_SECONDS)
        store.check()
        if self._on_fenced is not None and time.monotonic() >= self._look_due:
            self._look_due = time.monotonic() + _LOOK_SECONDS
            if store.refresh() != self._shipped:
                raise ConflictError(f"{self.name}: another writer has appended to this run")

    def _be_level(self) -> None:
        caught_up = self._standing == "lagging"
        self._standing, self._reason = "level", ""
        if caught_up:
            self._on_change(ReplicaState("level", 0))

    def _fall_behind(self, error: Exception) -> None:
        reason = str(error) if isinstance(error, LogError) else f"{type(error).__name__}: {error}"
        first = self._standing != "lagging"
        self._standing, self._reason = "lagging", reason
        if first and not self._stopping:
            self._on_change(self.state)

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._hurried, seconds)
            self._hurried = False
