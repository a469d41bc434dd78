"""The circuit breaker in front of the log: decisions that lapse in a row open it.

While it is open nothing is decided and training goes on. After a cool-down the event that
half-opens it tries the log: acknowledged it closes the breaker, otherwise it opens again.
"""

from __future__ import annotations

import time
from typing import Protocol

from esper.log.circuit import Circuit, State
from esper.tolaria.settings import GrowthSettings
from esper_events.events import BreakerChanged, Event, Record


class Ticket(Protocol):
    """The log's promise about one append."""

    @property
    def acknowledged(self) -> bool: ...

    @property
    def error(self) -> BaseException | None: ...

    @property
    def foretold(self) -> bool:
        """Whether a log of before tells when it is settled: then it is not timed again."""

    def wait(self, timeout: float) -> bool: ...


class Log(Protocol):
    """What the training thread needs of an event log, which never makes it wait."""

    def append(self, *events: Event) -> Ticket: ...

    def keep(self, data: bytes) -> str:
        """Bytes that events from now on may name; their SHA-256 in hex."""

    def records(self, start: int = 0) -> list[Record]:
        """The acknowledged records from index ``start`` on, in order."""


def overdue(ticket: Ticket, deadline: float) -> bool:
    """Whether the log has used up its time to answer."""
    return not ticket.foretold and time.monotonic() >= deadline


class Breaker:
    """A circuit of lapses, in steps; every change is an event."""

    def __init__(self, log: Log, settings: GrowthSettings) -> None:
        self._log = log
        self._settings = settings
        self._step = 0
        self._attempt: Ticket | None = None
        self._deadline = 0.0
        limit, cooldown = settings.breaker_limit, settings.breaker_cooldown
        self.circuit = Circuit(limit, cooldown, on_change=self._tell)

    @property
    def state(self) -> State:
        """Closed, open or half-open."""
        return self.circuit.state

    def allows(self, step: int) -> bool:
        """Whether anything may be decided at ``step``; an open breaker that is due tries the
        log."""
        self._step = step
        if self.circuit.allows(step) and self.state == "half-open":
            self._deadline = time.monotonic() + self._settings.ack_timeout
        if self.state == "half-open" and self._attempt is not None:
            self._weigh(self._attempt, step)
        return self.state == "closed"

    def snapshot(self) -> int:
        """What it remembers while it is closed: how many decisions lapsed in a row."""
        return self.circuit.failures

    def restore(self, lapses: int) -> None:
        """Be closed, after so many lapses."""
        self.circuit.failures = lapses

    def _weigh(self, attempt: Ticket, step: int) -> None:
        if self._settings.sync_decisions:
            attempt.wait(max(0.0, self._deadline - time.monotonic()))
        if attempt.acknowledged:
            self.answered(step)
        elif attempt.error is not None or overdue(attempt, self._deadline):
            self.circuit.failed(step, "the log did not acknowledge the attempt")

    def lapsed(self, step: int) -> None:
        """A decision lapsed at ``step`` because the log had not acknowledged it."""
        self._step = step
        if self.state == "half-open":  # The attempt alone tells how it goes on.
            self.circuit.failures += 1
        else:
            reason = f"{self.circuit.failures + 1} decisions lapsed in a row"
            self.circuit.failed(step, reason)

    def answered(self, step: int) -> None:
        """The log acknowledged in time."""
        self._step = step
        self.circuit.succeeded("the log acknowledges again")

    def _tell(self, state: State, reason: str) -> None:
        told = "this event tries the log again" if state == "half-open" else reason
        self._attempt = self._log.append(
            BreakerChanged(
                time=time.time(), step=self._step, breaker="log", state=state, reason=told
            )
        )
