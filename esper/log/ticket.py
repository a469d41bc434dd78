"""What an appender gets back at once: a promise that its events will be durable."""

from __future__ import annotations

import threading
from collections.abc import Iterable


class Ticket:
    """Settled once: acknowledged when its events are durable, or failed with ``error``.

    ``settled`` is shared by all tickets of a log: a ticket is made in the training thread, and
    a lock of its own would be most of what that costs.
    """

    __slots__ = ("_acknowledged", "_error", "_settled", "count", "first_index")

    foretold = False
    """Nobody knows when it will be settled; of a run that is resumed, its log does."""

    def __init__(self, first_index: int, count: int, settled: threading.Condition) -> None:
        self.first_index = first_index
        """Index in the log of the first event of this append."""
        self.count = count
        """Number of events appended together."""
        self._settled = settled
        self._acknowledged = False
        self._error: BaseException | None = None

    @property
    def acknowledged(self) -> bool:
        """Whether the events are durable in the log's acknowledgement mode."""
        return self._acknowledged

    @property
    def error(self) -> BaseException | None:
        """Why the events will never be acknowledged; None while that is open."""
        return self._error

    def wait(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds to be settled; whether it is acknowledged."""
        if not self._acknowledged:
            with self._settled:
                self._settled.wait_for(lambda: self._acknowledged or self._error, timeout)
        return self._acknowledged

    def mark(self, error: BaseException | None) -> None:
        """For the log: settle this ticket, unless it is; waiters are told by `settle`."""
        if self._error is None and not self._acknowledged:
            self._error = error
            self._acknowledged = error is None


def settle(
    tickets: Iterable[Ticket], settled: threading.Condition, error: BaseException | None = None
) -> None:
    """For the log: acknowledge ``tickets``, or fail them with ``error``, and wake who waits."""
    with settled:
        for ticket in tickets:
            ticket.mark(error)
        settled.notify_all()
