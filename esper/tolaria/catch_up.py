"""Resuming a killed run: train again to the head of its log, then go on from there.

The engine runs as it always does; only its log is another. As long as the log of before has
records left, an event is not appended but compared with the next of them, and a decision is
acknowledged at the very step at which it was applied then. Behind the last record events are
appended as usual.
"""

from __future__ import annotations

from collections import deque

import msgspec

from esper.log.event_log import EventLog, LogSummary
from esper.log.ticket import Ticket as LogTicket
from esper.tolaria.breaker import Ticket
from esper.tolaria.decisions import UNANSWERED
from esper.tolaria.logged import RerunError
from esper_events.codec import encode_event
from esper_events.events import (
    BreakerChanged,
    Event,
    Record,
    ReplicaChanged,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
)
from esper_events.keys import PublicKey


class CatchUpError(RerunError):
    """A resumed run does something else than its log tells."""


class LoggedTicket:
    """Acknowledged, or failed, at the step at which it was so in the run before."""

    def __init__(self, log: CatchUpLog, step: int, *, answered: bool) -> None:
        self._log = log
        self._step = step
        self._answered = answered

    @property
    def acknowledged(self) -> bool:
        """Whether the run before had its acknowledgement by now."""
        return self._answered and self._log.step >= self._step

    @property
    def error(self) -> BaseException | None:
        """Why it never came, from the step on at which the run before gave up."""
        if self._answered or self._log.step < self._step:
            return None
        return CatchUpError("not acknowledged in time in the run before")

    def wait(self, timeout: float) -> bool:
        """Nothing to wait for: what happened is known."""
        return self.acknowledged


class CatchUpLog:
    """An event log that follows what it holds already before it takes anything new.

    ``step`` is the optimizer step that training has come to; its owner keeps it up to date.
    """

    def __init__(self, log: EventLog) -> None:
        self.step = 0
        self._log = log
        records = (r for r in log.records() if not isinstance(r.event, ReplicaChanged))
        self._left: deque[Record] = deque(records)

    @property
    def log_id(self) -> str:
        """The run's id."""
        return self._log.log_id

    @property
    def public_key(self) -> PublicKey:
        """Of the key that signs."""
        return self._log.public_key

    @property
    def failure(self) -> BaseException | None:
        """Why nothing is acknowledged any more; None while the log works."""
        return self._log.failure

    @property
    def behind(self) -> int:
        """Records that training has still to catch up with."""
        return len(self._left)

    def append(self, *events: Event) -> Ticket | LogTicket:
        """Follow the next records, or append; see :meth:`EventLog.append`.

        Raises:
            CatchUpError: an event is not the one that the log tells next.
        """
        waiting = list(events)
        ticket: Ticket | LogTicket | None = None
        while waiting and self._left:
            ticket = self._follow(waiting[0], self._left[0])
            del waiting[0], self._left[0]
        if ticket is None or waiting:
            ticket = self._log.append(*waiting)
        return ticket

    def records(self, start: int = 0) -> list[Record]:
        """The acknowledged records from index ``start`` on, in order."""
        return self._log.records(start)

    def flush(self, timeout: float) -> bool:
        """Wait for what was appended; see :meth:`EventLog.flush`."""
        return self._log.flush(timeout)

    def close(self) -> LogSummary:
        """Close the log; see :meth:`EventLog.close`."""
        return self._log.close()

    def _follow(self, event: Event, record: Record) -> LoggedTicket:
        if _timeless(event) != _timeless(record.event):
            raise CatchUpError(
                f"at step {self.step} the resumed run tells {_brief(event)}, but record "
                f"{record.index} of its log is {_brief(record.event)}; model, data, settings, "
                "platform and thread count must be those of the run before"
            )
        step, answered = self._outcome(event)
        return LoggedTicket(self, step, answered=answered)

    def _outcome(self, event: Event) -> tuple[int, bool]:
        """At which step ``event`` was settled in the run before, and whether by an answer."""
        for record in list(self._left)[1:]:
            match event, record.event:
                case TransitionDecided(decision=one), TransitionApplied(decision=two, step=step):
                    if one == two:
                        return step, True
                case TransitionDecided(decision=one), TransitionLapsed(decision=two, step=step):
                    if one == two:
                        return step, record.event.reason != UNANSWERED
                case BreakerChanged(), BreakerChanged(state=state, step=step):
                    return step, state == "closed"
        return self.step, True


def _timeless(event: Event) -> bytes:
    return encode_event(msgspec.structs.replace(event, time=0.0))


def _brief(event: Event) -> str:
    fields = msgspec.structs.asdict(event)
    fields.pop("time")
    shown = ", ".join(f"{name}={value!r}" for name, value in fields.items())
    return f"{type(event).__struct_config__.tag} ({shown[:300]})"
