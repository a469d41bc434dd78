"""Who waits for which segment, and from when on it counts."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Literal

from esper.log.ticket import Ticket, settle
from esper_events.events import Record

Acknowledgement = Literal["journal", "jetstream"]


@dataclass(frozen=True)
class Written:
    """A segment that is in the journal: its number, who waits for it, what it says."""

    segment: int
    tickets: list[Ticket]
    records: list[Record]


class Settling:
    """Acknowledges segments in order, each when it is as durable as ``ack`` asks.

    ``records`` grows by what is acknowledged; ``settled`` wakes who waits for a ticket. Told by
    two threads: the log's writer and its replica.
    """

    def __init__(
        self, ack: Acknowledgement, records: list[Record], settled: threading.Condition
    ) -> None:
        self._records = records
        self._settled = settled
        self._needs_server = ack == "jetstream"
        self._lock = threading.Lock()
        self._waiting: deque[Written] = deque()
        self._shipped = 0
        self.acknowledged = 0
        """How many segments are."""
        self._abandoned: BaseException | None = None

    def written(self, segment: Written) -> None:
        """The next segment is in the journal."""
        with self._lock:
            self._waiting.append(segment)
            self._acknowledge()

    def shipped(self, count: int) -> None:
        """The server has the first ``count`` segments."""
        with self._lock:
            self._shipped = count
            self._acknowledge()

    def abandon(self, error: BaseException) -> None:
        """What waits for the server, now or later, will not be acknowledged."""
        with self._lock:
            self._abandoned = self._abandoned or error
            self._acknowledge()

    def _acknowledge(self) -> None:
        while self._waiting:
            first = self._waiting[0]
            lost = self._abandoned if self._needs_server else None
            if lost is None and self._needs_server and first.segment >= self._shipped:
                return
            self._waiting.popleft()
            if lost is None:
                self.acknowledged = first.segment + 1
                self._records.extend(first.records)
            settle(first.tickets, self._settled, lost)
