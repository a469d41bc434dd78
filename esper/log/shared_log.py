"""A log that many write: what to append is decided over and over until it follows what is there."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from esper.log.entries import Signer, seal_entries
from esper.log.errors import (
    BrokenLogError,
    ConflictError,
    LogError,
    MissingStreamError,
    OutcomeUnknownError,
    RolledBackError,
    StoreError,
    StoreUnavailableError,
)
from esper.log.seen import SeenSegments
from esper.log.store import SharedSource, SharedStore
from esper_events.errors import ChainError
from esper_events.keys import PublicKey
from esper_events.registry import RegistryEvent, RegistryRecord
from esper_events.registry_chain import RegistryVerifier
from esper_events.registry_rules import RegisteredRun

_logger = logging.getLogger("esper.log")

_RETRY_SECONDS = 0.05
_LONGEST_RETRY_SECONDS = 1.0
_SHORT = "the registry was rolled back: it holds {} segments"

Decide = Callable[[Sequence[RegistryRecord]], Sequence[RegistryEvent]]
"""Chooses what to append to the records that there are: nothing, or events that go in together."""


@dataclass
class _Proposal:
    """A segment that is to be number ``position``. ``sent`` tells whether the server may have it;
    ``records`` is what became of it: None while that is not known, empty where another segment has
    its place."""

    position: int
    segment: bytes
    sent: bool = False
    records: list[RegistryRecord] | None = None


class SharedLog:
    """The registry of one server, as one process reads and writes it.

    Nothing is asked of the server before the first call. ``seen`` holds what this workspace knows
    of the log, so that it is not verified again, and so that a server which holds less, or
    something else, is found out. ``signer`` is asked for the key when something is written.
    Safe to use from several threads; a call of one waits for that of another.

    Every call raises ``StoreUnavailableError`` when the server does not answer in time,
    ``RolledBackError`` when it holds less than was seen, ``BrokenLogError`` when it holds what is
    no registry.
    """

    def __init__(
        self, source: SharedSource, signer: Callable[[], Signer], seen: SeenSegments
    ) -> None:
        self.name = source.name
        self._source = source
        self._signer = signer
        self._seen = seen
        self._records: list[RegistryRecord] = []
        self._chain = RegistryVerifier()
        self._store: SharedStore | None = None
        self._last = b""
        """The last segment that was accepted."""
        self._proposal: _Proposal | None = None
        """What is being published, or was without an answer."""
        self._lock = threading.Lock()
        self._chain.admission.known = True  # by the last of them, that the server is held to
        try:
            for segment in seen.load():
                self._accept(segment)
        except ChainError as error:
            raise LogError(f"{seen.path}: {error}; {seen.advice}") from error
        self._chain.admission.known = False
        self.remembered = self._chain.events
        """Events that this workspace had seen before."""

    @property
    def runs(self) -> Mapping[str, RegisteredRun]:
        """The runs that were read so far, with their heads, by log id."""
        return self._chain.admission.rules.runs

    @property
    def root(self) -> PublicKey | None:
        """The key that admits writers; None where the registry has not begun."""
        return self._chain.admission.root

    def admits(self, key: PublicKey) -> bool:
        """Whether ``key`` may write."""
        return self._chain.admission.may_write(key)

    def records(self) -> Sequence[RegistryRecord]:
        """What was read so far, in order, without asking the server."""
        return tuple(self._records)

    def refresh(self, timeout: float = 10.0) -> None:
        """Read what others have written since; ``timeout`` seconds for a server that is away."""
        with self._lock:
            self._catch_up(time.monotonic() + timeout)

    def update(self, decide: Decide, timeout: float = 10.0) -> list[RegistryRecord]:
        """Append what ``decide`` chooses, if that still follows from what is there; the records.

        Where another writer was first, ``decide`` is asked again with what that wrote. A choice
        that was published and not answered is cleared up before another is published, by the next
        call if need be.

        Raises ``OutcomeUnknownError`` when the server did not say in time whether it has them, and
        ``LogError`` for events that cannot stand there or a key that may not write.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            while True:
                self._catch_up(deadline)
                events = decide(tuple(self._records))
                if not events:
                    return []
                segment = seal_entries(self._chain, self._signer(), events)
                proposal = self._proposal = _Proposal(self._chain.segments, segment)
                try:
                    self._catch_up(deadline)
                finally:
                    if not proposal.sent:
                        self._proposal = None
                if proposal.records:
                    return proposal.records[-len(events) :]
                if time.monotonic() > deadline:
                    raise StoreUnavailableError(
                        f"{self.name}: others wrote in the registry first for {timeout:g} s"
                    )

    def verify(self, timeout: float = 10.0) -> None:
        """Read all of it from the server again, every signature checked.

        Raises ``BrokenLogError`` where it is not whole.
        """
        with self._lock:
            self._catch_up(time.monotonic() + timeout)
            chain = RegistryVerifier()
            try:
                for segment in () if self._store is None else self._store.read():
                    chain.accept(segment)
            except ChainError as error:
                raise BrokenLogError(f"{self.name}: the registry is not whole: {error}") from error
            if chain.head != self._chain.head:
                raise self._rolled_back("the registry was rewritten")

    def copy_of(self, log: str) -> SharedStore:
        """The copy that the same server has of a run's log, to be read.

        Raises ``MissingStreamError`` where it has none.
        """
        with self._lock:
            store = self._connected(create=False)
        if store is None:
            raise MissingStreamError(f"{self.name}: there is no registry, nor log {log}")
        return store.beside(log, create=False)

    def close(self) -> None:
        """Let go of connection and server; safe to call twice."""
        self._disconnect()
        self._source.close()

    def __enter__(self) -> SharedLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _catch_up(self, deadline: float) -> None:
        """Read what is there, and see to it that the proposal has its place or has lost it."""
        pause = _RETRY_SECONDS
        while True:
            try:
                self._attempt()
                return
            except StoreUnavailableError as error:
                self._disconnect()
                if time.monotonic() + pause > deadline:
                    raise self._unanswered(error) from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_RETRY_SECONDS)

    def _unanswered(self, error: StoreUnavailableError) -> StoreUnavailableError:
        if self._proposal is None or not self._proposal.sent:
            return error
        return OutcomeUnknownError(
            f"{error}; whether the registry has what was to be written is not known"
        )

    def _attempt(self) -> None:
        proposal = self._proposal
        store = self._connected(create=proposal is not None)
        if store is None:
            return
        if proposal is None or proposal.sent:
            self._read(store)  # what was decided just now follows what was read just before
        if proposal is not None and proposal.records is None:
            self._publish(store, proposal)
        self._proposal = None

    def _publish(self, store: SharedStore, proposal: _Proposal) -> None:
        proposal.sent = True
        try:
            store.append(proposal.position, proposal.segment)
        except ConflictError:
            self._read(store)
            if proposal.records is None:
                raise StoreUnavailableError(f"{self.name}: does not show who wrote first") from None
        except StoreError:
            self._proposal = None  # It was refused, so there is nothing to be found out.
            raise
        else:
            self._take([proposal.segment])

    def _connected(self, *, create: bool) -> SharedStore | None:
        """The store; None where there is no registry yet, and none is to be begun."""
        if self._store is not None:
            return self._store
        seen = self._chain.segments
        try:
            store = self._source.connect(create=create and not seen)
        except MissingStreamError as error:
            if not seen:
                return None
            raise self._rolled_back("the registry is gone") from error
        try:
            if seen and (store.count < seen or next(store.read(seen - 1)) != self._last):
                raise self._rolled_back(
                    _SHORT.format(store.count)
                    if store.count < seen
                    else f"the registry was rewritten: its segment {seen - 1} is another one"
                )
        except BaseException:
            store.close()
            raise
        self._store = store
        return store

    def _rolled_back(self, what: str) -> RolledBackError:
        return RolledBackError(
            f"{self.name}: {what}; this workspace has seen {self._chain.segments} segments of it, "
            f"{self._chain.events} events (`esper repair --registry` gives back what was lost; "
            f"{self._seen.advice})"
        )

    def _read(self, store: SharedStore) -> None:
        if store.refresh() < self._chain.segments:
            raise self._rolled_back(
                f"the registry was rolled back: it holds {store.count} segments"
            )
        self._take(list(store.read(self._chain.segments)))

    def _take(self, segments: Sequence[bytes]) -> None:
        """Verify what the server holds next, and remember it."""
        start = self._chain.segments
        try:
            for segment in segments:
                self._accept(segment)
        except ChainError as error:
            raise BrokenLogError(f"{self.name}: the registry is not whole: {error}") from error
        if not segments:
            return
        try:
            self._seen.add(start, segments)
        except LogError as error:
            # The server has them; all that is lost is that this workspace remembers them.
            _logger.warning("%s", error)

    def _accept(self, segment: bytes) -> None:
        position, records = self._chain.segments, self._chain.accept(segment)
        self._last = segment
        self._records += records
        proposal = self._proposal
        if proposal is not None and proposal.position == position:
            proposal.records = records if proposal.segment == segment else []

    def _disconnect(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()
