"""Following the log of a run from the server that has it, wherever the run is being trained."""

from __future__ import annotations

from collections.abc import Iterator

from esper.log.errors import MissingStreamError, StoreUnavailableError
from esper.log.store import SharedSource, SharedStore
from esper_events.anchor import Anchor
from esper_events.chain import ChainVerifier
from esper_events.events import Record


class ServerFollower:
    """The server's copy of a log, each segment proven as it is read; what `LogFollower` is for a
    directory.

    A server that goes away is waited for, once it was there. Raises ``LogError`` for one that is
    not, and for a stream that is no log.
    """

    def __init__(self, source: SharedSource, trusted: Anchor | None = None) -> None:
        self.verifier = ChainVerifier(trusted)
        self._source = source
        self._store: SharedStore | None = None
        self._was_there = False

    def has_more(self) -> bool:
        """Whether the server has more than was read; a log that has not begun has not."""
        try:
            if self._store is None:
                self._store = self._source.connect(create=False)
                self._was_there = True
            return self._store.refresh() > self.verifier.segments
        except MissingStreamError:
            return False
        except StoreUnavailableError:
            self._disconnect()
            if not self._was_there:
                raise
            return False

    def records(self) -> Iterator[Record]:
        """What has come, as `has_more` saw it; to be read to its end.

        Raises ``ChainError`` when the log is damaged, or not that of the trusted key.
        """
        if self._store is not None:
            for segment in self._store.read(self.verifier.segments):
                yield from self.verifier.accept(segment)

    def _disconnect(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def close(self) -> None:
        """Let go of connection and server."""
        self._disconnect()
        self._source.close()
