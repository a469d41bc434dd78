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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import UNSET

from esper.log.circuit import Circuit
from esper.tolaria.breaker import Breaker, Log, Ticket, overdue
from esper.tolaria.settings import GrowthSettings
from esper_events.events import (
    Objective,
    SeedFolded,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
    recorded,
)
from esper_events.stages import Stage

__all__ = ["Change", "Decisions", "Effect", "Log", "Ticket"]


_COOLING = frozenset({Stage.EMBARGOED, Stage.DORMANT})
UNANSWERED = "the log did not acknowledge it in time"
"""Why a decision lapses on which the log kept silent."""
OVERTAKEN = "overtaken by what has happened since"
"""Why one lapses that was acknowledged when it made no sense any more."""
FAILED = "it failed: "
"""How the reason begins why one lapses that was acknowledged and could not be carried out."""


@dataclass(frozen=True)
class Effect:
    """What applying a decision did: the seed's digest at that moment, host steps lost, and what
    else there is to tell of it."""

    seed_weights: str = ""
    steps_lost: int = 0
    events: tuple[SeedFolded, ...] = ()


@dataclass(frozen=True)
class Change:
    """A wanted transition of one seed and how to carry it out.

    ``apply`` takes the step at which it happens. ``still_holds`` is asked right before: what was
    true when the change was decided may have passed. ``lapsed`` is called when the change will
    never happen. ``objective`` is that of a seed that germinates, ``consulted`` the step at which
    the controller proposed this; None where it was not asked.
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
    removal: Literal["", "removed", "fork", "snapshot"] = ""
    objective: Objective = "shadow"
    consulted: int | None = None


@dataclass
class _Open:
    number: int
    at_step: int
    change: Change
    ticket: Ticket
    deadline: float = math.inf


class Decisions:
    """Decisions under way; each ends as applied or lapsed, and either is an event."""

    def __init__(self, log: Log, settings: GrowthSettings) -> None:
        self._log = log
        self._settings = settings
        self._breaker = Breaker(log, settings)
        self._open: dict[int, _Open] = {}
        self._followers: list[tuple[TransitionDecided, Change]] | None = None
        """What the change decides that is being applied; None while none is."""
        self._count = 0
        self.lapsed = 0

    def __bool__(self) -> bool:
        """Whether anything is under way: a decision, or the breaker's attempt at the log."""
        return bool(self._open) or self._breaker.state == "half-open"

    @property
    def quiet(self) -> bool:
        """Whether nothing is held back, and nothing under way but the cool-down of seeds."""
        targets = {entry.change.target for entry in self._open.values()}
        return targets <= _COOLING and self._breaker.state == "closed"

    def snapshot(self) -> dict[str, Any]:
        """What there is to remember while it is quiet."""
        return {
            "open": [(e.number, e.at_step, e.change.seed) for e in self._open.values()],
            "count": self._count,
            "lapsed": self.lapsed,
            "breaker": self._breaker.snapshot(),
        }

    def restore(
        self,
        kept: Mapping[str, Any],
        cooldown: Callable[[int], Change],
        told: Callable[[int], Ticket],
    ) -> None:
        """Go on from a :meth:`snapshot`; ``cooldown`` gives the change of a seed that cools down,
        ``told`` the log's promise about a decision that it holds already."""
        for number, at_step, seed in kept["open"]:
            self._open[number] = _Open(number, at_step, cooldown(seed), told(number))
        self._count, self.lapsed = kept["count"], kept["lapsed"]
        self._breaker.restore(kept["breaker"])

    @property
    def circuit(self) -> Circuit:
        """The log's circuit breaker."""
        return self._breaker.circuit

    def pending(self, seed: int) -> bool:
        """Whether a decision about ``seed`` is under way."""
        return any(entry.change.seed == seed for entry in self._open.values())

    def heading(self, seed: int, target: Stage) -> bool:
        """Whether a decision under way takes ``seed`` to ``target``."""
        changes = (entry.change for entry in self._open.values())
        return any(change.seed == seed and change.target is target for change in changes)

    def allowed(self, step: int) -> bool:
        """Whether the breaker lets anything be decided at ``step``."""
        return self._breaker.allows(step)

    def decide(self, step: int, change: Change, delay: int | None = None) -> None:
        """Append the decision that ``change`` takes effect ``delay`` steps from ``step``
        (the configured lead when None).

        One that a change makes as it is applied joins the event which tells that: a log that is
        cut anywhere tells of no consequence without its cause.
        """
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
            objective=recorded(change.objective),
            consulted=UNSET if change.consulted is None else change.consulted,
        )
        if self._followers is not None:
            self._followers.append((decided, change))
        else:
            self._wait(decided, change, self._log.append(decided))

    def _wait(self, decided: TransitionDecided, change: Change, ticket: Ticket) -> None:
        number = decided.decision
        self._open[number] = _Open(number, decided.at_step, change, ticket)

    def settle(self, step: int, *, wait: bool = False) -> bool:
        """Apply what is due at ``step`` and acknowledged, lapse what is overdue; True if anything
        was applied.

        ``wait`` gives the log its time-out to acknowledge, once for all that is due, as
        ``sync_decisions`` does.
        """
        due = [entry for entry in self._open.values() if entry.at_step <= step]
        for entry in due:
            if entry.deadline == math.inf:
                entry.deadline = time.monotonic() + self._settings.ack_timeout
        applied = False
        for entry in due:
            if self._answered(entry, wait or self._settings.sync_decisions):
                del self._open[entry.number]
                applied |= self._settle_one(entry, step)
        return applied

    def withdraw(self, seed: int, step: int, reason: str) -> None:
        """Let the open decisions about ``seed`` lapse."""
        self._lapse_all([e for e in self._open.values() if e.change.seed == seed], step, reason)

    def abandon(self, step: int, reason: str) -> None:
        """Let every open decision lapse."""
        self._lapse_all(list(self._open.values()), step, reason)

    @staticmethod
    def _answered(entry: _Open, wait: bool) -> bool:
        """Whether the log has acknowledged or failed ``entry``, or used up its time."""
        ticket = entry.ticket
        if wait and not ticket.acknowledged:
            ticket.wait(max(0.0, entry.deadline - time.monotonic()))
        failed = ticket.error is not None
        return ticket.acknowledged or failed or overdue(ticket, entry.deadline)

    def _settle_one(self, entry: _Open, step: int) -> bool:
        change = entry.change
        if not entry.ticket.acknowledged:
            self._lapse(entry, step, UNANSWERED)
            self._breaker.lapsed(step)
            return False
        holds = change.still_holds()
        if holds:
            self._apply(entry, step)
        else:
            self._lapse(entry, step, OVERTAKEN)
        self._breaker.answered(step)
        return holds

    def _apply(self, entry: _Open, step: int) -> None:
        followers = self._followers = []
        try:
            effect = entry.change.apply(step)
        except BaseException as error:
            self._count -= len(followers)
            self._lapse(entry, step, f"{FAILED}{type(error).__name__}: {error}")
            raise
        finally:
            self._followers = None
        applied = TransitionApplied(
            time=time.time(),
            decision=entry.number,
            step=step,
            seed_weights=effect.seed_weights,
            steps_lost=effect.steps_lost,
        )
        decided = [event for event, _ in followers]
        ticket = self._log.append(applied, *effect.events, *decided)
        for event, change in followers:
            self._wait(event, change, ticket)

    def _lapse_all(self, entries: list[_Open], step: int, reason: str) -> None:
        for entry in entries:
            del self._open[entry.number]
            self._lapse(entry, step, reason)

    def _lapse(self, entry: _Open, step: int, reason: str) -> None:
        self.lapsed += 1
        self._log.append(
            TransitionLapsed(time=time.time(), decision=entry.number, step=step, reason=reason)
        )
        entry.change.lapsed()
