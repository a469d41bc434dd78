"""The circuit breaker in front of the log: decisions that lapse in a row open it.

While it is open nothing is decided and training goes on. After a cool-down the event that
half-opens it tries the log: acknowledged it closes the breaker, otherwise it opens again.
"""

from __future__ import annotations

import time
from typing import Literal, Protocol

from esper.tolaria.settings import GrowthSettings
from esper_events.events import BreakerChanged, Event

State = Literal["closed", "open", "half-open"]


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


def overdue(ticket: Ticket, deadline: float) -> bool:
    """Whether the log has used up its time to answer."""
    return not ticket.foretold and time.monotonic() >= deadline


class Breaker:
    """Closed, open, or half-open; every change is an event."""

    def __init__(self, log: Log, settings: GrowthSettings) -> None:
        self._log = log
        self._settings = settings
        self._lapses = 0
        self._due = 0
        self._attempt: Ticket | None = None
        self._deadline = 0.0
        self.state: State = "closed"

    def allows(self, step: int) -> bool:
        """Whether anything may be decided at ``step``; an open breaker that is due tries the
        log."""
        if self.state == "open" and step >= self._due:
            self._deadline = time.monotonic() + self._settings.ack_timeout
            self._attempt = self._enter("half-open", step, "this event tries the log again")
        if self.state == "half-open" and self._attempt is not None:
            self._weigh(self._attempt, step)
        return self.state == "closed"

    def snapshot(self) -> int:
        """What it remembers while it is closed: how many decisions lapsed in a row."""
        return self._lapses

    def restore(self, lapses: int) -> None:
        """Be closed, after so many lapses."""
        self._lapses = lapses

    def _weigh(self, attempt: Ticket, step: int) -> None:
        if self._settings.sync_decisions:
            attempt.wait(max(0.0, self._deadline - time.monotonic()))
        if attempt.acknowledged:
            self.answered(step)
        elif attempt.error is not None or overdue(attempt, self._deadline):
            self._open(step, "the log did not acknowledge the attempt")

    def lapsed(self, step: int) -> None:
        """A decision lapsed at ``step`` because the log had not acknowledged it."""
        self._lapses += 1
        if self.state == "closed" and self._lapses >= self._settings.breaker_limit:
            self._open(step, f"{self._lapses} decisions lapsed in a row")

    def answered(self, step: int) -> None:
        """The log acknowledged in time."""
        self._lapses = 0
        if self.state != "closed":
            self._enter("closed", step, "the log acknowledges again")

    def _open(self, step: int, reason: str) -> None:
        self._due = step + self._settings.breaker_cooldown
        self._enter("open", step, reason)

    def _enter(self, state: State, step: int, reason: str) -> Ticket:
        self.state = state
        return self._log.append(
            BreakerChanged(time=time.time(), step=step, breaker="log", state=state, reason=reason)
        )
