"""Decide, append, acknowledge, apply: no change reaches the host before the log has it.

Each decision names the step at which it takes effect. It is applied at the first safe point
from that step on at which the log has acknowledged it; training waits for nothing. A log that
has not answered ``ack_timeout`` seconds after that step lets the change lapse; either way an
event says so. Lapses in a row open a circuit breaker: training goes on, and growth waits until
the log answers again. With ``sync_decisions`` the named step waits for the log instead, so that
a run depends on nothing but its seed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from esper.tolaria.settings import GrowthSettings
from esper_events.events import (
    BreakerChanged,
    Event,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
)
from esper_events.stages import Stage


BreakerState = Literal["closed", "open", "half-open"]


class Ticket(Protocol):
    """The log's promise about one append."""

    @property
    def acknowledged(self) -> bool: ...

    @property
    def error(self) -> BaseException | None: ...

    def wait(self, timeout: float) -> bool: ...


class Log(Protocol):
    """What the training thread needs of an event log; ``append`` never blocks."""

    def append(self, *events: Event) -> Ticket: ...


@dataclass(frozen=True)
class Effect:
    """What applying a decision did: the seed's digest at that moment, and host steps lost."""

    seed_weights: str = ""
    steps_lost: int = 0


@dataclass(frozen=True)
class Change:
    """A wanted transition of one seed and how to carry it out.

    ``apply`` takes the step at which it happens. ``still_holds`` is asked right before: what was
    true when the change was decided may have passed. ``lapsed`` is called when the change will
    never happen.
    """

    seed: int
    slot: str
    blueprint: str
    source: Stage
    target: Stage
    reason: str
    apply: Callable[[int], Effect]
    still_holds: Callable[[], bool]
    lapsed: Callable[[], None]
    removal: Literal["", "removed", "fork"] = ""


@dataclass
class _Open:
    number: int
    at_step: int
    change: Change
    ticket: Ticket
    deadline: float = math.inf


class Decisions:
    """Decisions under way, and the circuit breaker in front of the log."""

    def __init__(self, log: Log, settings: GrowthSettings) -> None:
        self._log = log
        self._settings = settings
        self._open: list[_Open] = []
        self._count = 0
        self._lapses_in_a_row = 0
        self._breaker: BreakerState = "closed"
        self._retry_at = 0
        self.lapsed = 0

    def __bool__(self) -> bool:
        return bool(self._open)

    def pending(self, seed: int) -> bool:
        """Whether a decision about ``seed`` is under way."""
        return any(entry.change.seed == seed for entry in self._open)

    def allowed(self, step: int) -> bool:
        """Whether the breaker lets decisions through: it is closed, or due to try the log again
        with the decisions of one step."""
        return self._breaker == "closed" or (step >= self._retry_at and not self._open)

    def decide(self, step: int, change: Change, delay: int | None = None) -> None:
        """Append the decision that ``change`` takes effect ``delay`` steps from ``step``
        (the configured lead when None)."""
        if self._breaker == "open" and step >= self._retry_at:
            self._turn(step, "half-open", "the log is tried again")
        at_step = step + (self._settings.lead if delay is None else delay)
        number, self._count = self._count, self._count + 1
        decided = TransitionDecided(
            time=time.time(),
            decision=number,
            step=step,
            at_step=at_step,
            seed=change.seed,
            slot=change.slot,
            blueprint=change.blueprint,
            source=change.source,
            target=change.target,
            reason=change.reason,
            removal=change.removal,
        )
        self._open.append(_Open(number, at_step, change, self._log.append(decided)))

    def settle(self, step: int, *, wait: bool = False) -> bool:
        """Apply what is due at ``step`` and acknowledged, lapse what is overdue; True if anything
        was applied.

        ``wait`` gives the log its time-out to acknowledge, as ``sync_decisions`` does.
        """
        if not self._open:
            return False
        wait = wait or self._settings.sync_decisions
        applied = False
        for entry in [entry for entry in self._open if entry.at_step <= step]:
            if self._answered(entry, wait):
                self._open.remove(entry)
                applied |= self._settle_one(entry, step)
        return applied

    def abandon(self, step: int, reason: str) -> None:
        """Let every open decision lapse."""
        abandoned, self._open = self._open, []
        for entry in abandoned:
            self._lapse(entry, step, reason)

    def _answered(self, entry: _Open, wait: bool) -> bool:
        """Whether the log has acknowledged or failed ``entry``, or used up its time."""
        ticket = entry.ticket
        if entry.deadline == math.inf:
            entry.deadline = time.monotonic() + self._settings.ack_timeout
        if wait and not ticket.acknowledged:
            ticket.wait(max(0.0, entry.deadline - time.monotonic()))
        failed = ticket.error is not None
        return ticket.acknowledged or failed or time.monotonic() >= entry.deadline

    def _settle_one(self, entry: _Open, step: int) -> bool:
        change = entry.change
        if not entry.ticket.acknowledged:
            self._lapse(entry, step, "the log did not acknowledge it in time")
            self._count_lapse(step)
            return False
        self._count_success(step)
        if not change.still_holds():
            self._lapse(entry, step, "overtaken by another change of this seed")
            return False
        effect = change.apply(step)
        self._log.append(
            TransitionApplied(
                time=time.time(),
                decision=entry.number,
                step=step,
                seed_weights=effect.seed_weights,
                steps_lost=effect.steps_lost,
            )
        )
        return True

    def _lapse(self, entry: _Open, step: int, reason: str) -> None:
        self.lapsed += 1
        self._log.append(
            TransitionLapsed(time=time.time(), decision=entry.number, step=step, reason=reason)
        )
        entry.change.lapsed()

    def _count_lapse(self, step: int) -> None:
        self._lapses_in_a_row += 1
        too_many = self._lapses_in_a_row >= self._settings.breaker_limit
        if self._breaker == "half-open" or (self._breaker == "closed" and too_many):
            self._retry_at = step + self._settings.breaker_cooldown
            self._turn(step, "open", f"{self._lapses_in_a_row} decisions lapsed in a row")

    def _count_success(self, step: int) -> None:
        self._lapses_in_a_row = 0
        if self._breaker != "closed":
            self._turn(step, "closed", "the log acknowledges again")

    def _turn(self, step: int, state: BreakerState, reason: str) -> None:
        self._breaker = state
        self._log.append(
            BreakerChanged(time=time.time(), step=step, breaker="log", state=state, reason=reason)
        )
