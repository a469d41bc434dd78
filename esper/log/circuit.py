"""A circuit breaker: what fails again and again is left alone for a while, then tried once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half-open"]


def _unheard(state: State, reason: str) -> None:
    return None


class Circuit:
    """Closed, open or half-open.

    Closed, everything is let through, and ``limit`` failures in a row open it. Open, nothing is,
    until ``cooldown`` has gone by: then one attempt is let through, and it is half-open. That
    attempt closes it or opens it again. What time is, seconds or steps, its user says: it grows
    from call to call. ``on_change`` hears every new state and why. One thread works it; ``state``
    and ``reason`` may be read from any.
    """

    def __init__(
        self,
        limit: int,
        cooldown: float,
        on_change: Callable[[State, str], None] = _unheard,
    ) -> None:
        self.state: State = "closed"
        self.reason = ""
        """Why it is in this state; empty as long as nothing has happened."""
        self.failures = 0
        """Failures in a row."""
        self._limit = limit
        self._cooldown = cooldown
        self._due = 0.0
        self._on_change = on_change

    def allows(self, now: float) -> bool:
        """Whether anything may be tried at ``now``; True once for the attempt of a half-open
        one."""
        if self.state == "open" and now >= self._due:
            self._enter("half-open", "it is tried again")
            return True
        return self.state == "closed"

    def failed(self, now: float, reason: str) -> None:
        """What was tried has failed at ``now``."""
        self.failures += 1
        if self.state == "half-open" or (self.state == "closed" and self.failures >= self._limit):
            self._due = now + self._cooldown
            self._enter("open", reason)

    def succeeded(self, reason: str = "it answers again") -> None:
        """What was tried has gone well, be it an answer that was given up."""
        self.failures = 0
        if self.state != "closed":
            self._enter("closed", reason)

    def _enter(self, state: State, reason: str) -> None:
        self.state, self.reason = state, reason
        self._on_change(state, reason)
