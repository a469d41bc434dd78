"""What an appender gets back at once: a promise that its events will be durable."""

from __future__ import annotations

import threading


class Ticket:
    """Settled once: acknowledged when its events are durable, or failed with ``error``."""

    __slots__ = ("_acknowledged", "_error", "_settled", "count", "first_index")

    def __init__(self, first_index: int, count: int) -> None:
        self.first_index = first_index
        """Index in the log of the first event of this append."""
        self.count = count
        """Number of events appended together."""
        self._settled = threading.Event()
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
        self._settled.wait(timeout)
        return self._acknowledged

    def acknowledge(self) -> None:
        """For the log: the events are durable."""
        if self._error is None:
            self._acknowledged = True
            self._settled.set()

    def fail(self, error: BaseException) -> None:
        """For the log: the events are lost."""
        if not self._acknowledged:
            self._error = error
            self._settled.set()
