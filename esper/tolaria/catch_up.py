"""Resuming a killed run: train again to the head of its log, then go on from there.

The engine runs as it always does; only its log is another. As long as the log of before has
records left, an event is not appended but compared with the next of them, and a decision is
acknowledged at the very step at which it was applied then. Behind the last record events are
appended as usual. Records that stand where threads happened to put them are not followed: those
of the log's copy, of checkpoints, and of keys that the root certified between two runs.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

import msgspec

from esper.log.circuit import Circuit
from esper.log.copies import ObjectCopies
from esper.log.credentials import Credentials
from esper.log.errors import FencedError
from esper.log.event_log import EventLog, LogSummary
from esper.log.ticket import Ticket as LogTicket
from esper.tolaria.breaker import Ticket
from esper.tolaria.decisions import FAILED, OVERTAKEN, UNANSWERED
from esper.tolaria.logged import RerunError
from esper_events.codec import encode_event
from esper_events.events import (
    OF_WRITERS,
    BlueprintRegistered,
    BreakerChanged,
    CheckpointWritten,
    Event,
    HostRolledBack,
    LatticeDeclared,
    Record,
    ReplicaChanged,
    RollbackDecided,
    RunStarted,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
)

_UNFOLLOWED = (ReplicaChanged, CheckpointWritten, *OF_WRITERS)
_FIRST = (RunStarted, LatticeDeclared, BlueprintRegistered, ReplicaChanged, *OF_WRITERS)
"""Kinds without a step; a run begins with the first three, the others are not followed."""


class CatchUpError(RerunError):
    """A resumed run does something else than its log tells."""


class LoggedTicket:
    """Acknowledged, or failed, where it was so in the run before: at the step of what came of it,
    its record ``outcome``, when all is followed that the log tells before that.

    However long that takes now: a run that is slower than the one before is the same run. Where the
    log does not tell of any, nothing came of it as long as there was a log. ``answer`` is how the
    run before took it: None where it was withdrawn without one.
    """

    foretold = True

    def __init__(self, log: CatchUpLog, outcome: Record | None, *, answer: bool | None) -> None:
        self._log = log
        self._outcome = outcome
        self._answer = answer

    @property
    def acknowledged(self) -> bool:
        """Whether the run before had its acknowledgement by now."""
        return self._answer is True and self._come

    @property
    def error(self) -> BaseException | None:
        """Why it never came, from where the run before gave up."""
        if self._answer is False and self._come:
            return CatchUpError("not acknowledged in time in the run before")
        return None

    @property
    def _come(self) -> bool:
        if self._outcome is None:
            return self._log.behind == 0
        return self._log.due(self._outcome)

    def wait(self, timeout: float) -> bool:
        """Nothing to wait for: what happened is known."""
        return self.acknowledged


class Acknowledged:
    """Of what the log holds, and of which nothing more comes."""

    foretold = True
    acknowledged = True
    error: BaseException | None = None

    def wait(self, timeout: float) -> bool:
        """Nothing to wait for."""
        return True


class CatchUpLog:
    """An event log that follows what it holds already before it takes anything new.

    ``step`` is the optimizer step that training has come to; its owner keeps it up to date.
    """

    def __init__(self, log: EventLog) -> None:
        self.step = 0
        self._log = log
        records = log.records()
        self._left = deque(r for r in records if not isinstance(r.event, _UNFOLLOWED))
        told = (r.event for r in records if isinstance(r.event, CheckpointWritten))
        self._checkpoints = {(event.step, event.file) for event in told}

    @property
    def log_id(self) -> str:
        """The run's id."""
        return self._log.log_id

    @property
    def credentials(self) -> Credentials:
        """Of the key that the log began with, as its first event has them."""
        return self._log.credentials

    @property
    def failure(self) -> BaseException | None:
        """Why nothing is acknowledged any more; None while the log works."""
        return self._log.failure

    @property
    def fenced(self) -> FencedError | None:
        """Who has the run, where that is another writer by now."""
        return self._log.fenced

    @property
    def breakers(self) -> dict[str, Circuit]:
        """The circuit breakers of this log, by what they are in front of."""
        return self._log.breakers

    @property
    def copies(self) -> ObjectCopies | None:
        """Of objects and checkpoints on the server; None without one."""
        return self._log.copies

    @property
    def behind(self) -> int:
        """Records that training has still to catch up with."""
        return len(self._left)

    def due(self, outcome: Record) -> bool:
        """Whether training has come to the step of ``outcome``, and followed all before it."""
        event = outcome.event
        if isinstance(event, _FIRST) or event.step > self.step:
            return False
        return not self._left or self._left[0].index >= outcome.index

    @property
    def ahead(self) -> Event | None:
        """The event that the log tells next; None when training has caught up with it."""
        return self._left[0].event if self._left else None

    @property
    def concluding(self) -> bool:
        """Whether all that is left was told at this very step, as a run does that was killed
        while it closed."""
        events = [record.event for record in self._left]
        return all(not isinstance(e, _FIRST) and e.step == self.step for e in events)

    def append(self, *events: Event) -> Ticket | LogTicket:
        """Follow the next records, or append; see :meth:`EventLog.append`.

        Raises:
            CatchUpError: an event is not the one that the log tells next.
        """
        if len(events) == 1 and isinstance(events[0], CheckpointWritten):
            return self._note(events[0])
        waiting = list(events)
        ticket: Ticket | LogTicket | None = None
        while waiting and self._left:
            ticket = self._follow(waiting[0], self._left[0])
            del waiting[0], self._left[0]
        if ticket is None or waiting:
            ticket = self._log.append(*waiting)
        return ticket

    def keep(self, data: bytes) -> str:
        """Hand over bytes that events may name; see :meth:`EventLog.keep`."""
        return self._log.keep(data)

    def skip_to(self, step: int) -> None:
        """Take up to ``step`` as followed, where training goes on from a checkpoint of it.

        Raises:
            CatchUpError: what a run begins with has not been followed yet.
        """
        self.step = step
        while self._left:
            event = self._left[0].event
            if isinstance(event, _FIRST):
                raise CatchUpError(f"{_brief(event)} stands behind the checkpoint of step {step}")
            if event.step > step:
                return
            self._left.popleft()

    def told(self, decision: int) -> Ticket:
        """The promise about a decision that the log of before holds."""
        for record in self._left:
            match record.event:
                case TransitionApplied(decision=number) if number == decision:
                    return LoggedTicket(self, record, answer=True)
                case TransitionLapsed(decision=number, reason=reason) if number == decision:
                    return LoggedTicket(self, record, answer=_answer(reason))
        return LoggedTicket(self, None, answer=True)

    def _note(self, event: CheckpointWritten) -> Ticket | LogTicket:
        """Append it, wherever training is, unless the log tells of this very file."""
        if (event.step, event.file) in self._checkpoints:
            return Acknowledged()
        return self._log.append(event)

    def records(self, start: int = 0) -> list[Record]:
        """The acknowledged records from index ``start`` on, in order."""
        return self._log.records(start)

    def flush(self, timeout: float) -> bool:
        """Wait for what was appended; see :meth:`EventLog.flush`."""
        return self._log.flush(timeout)

    def close(self) -> LogSummary:
        """Close the log; see :meth:`EventLog.close`."""
        return self._log.close()

    def _follow(self, event: Event, record: Record) -> Ticket:
        if _timeless(event) != _timeless(record.event):
            raise CatchUpError(
                f"at step {self.step} the resumed run tells {_brief(event)}, but record "
                f"{record.index} of its log is {_brief(record.event)}; model, data, settings, "
                "platform and thread count must be those of the run before"
            )
        return self._promise(event)

    def _promise(self, event: Event) -> Ticket:
        """What the log tells that came of ``event``, which stands next in it."""
        match event:
            case TransitionDecided(decision=decision):
                return self.told(decision)
            case BreakerChanged():
                changes = (r for r in self._left if isinstance(r.event, BreakerChanged))
                later = next(islice(changes, 1, None), None)
                return LoggedTicket(self, later, answer=later is None or _closes(later.event))
            case RollbackDecided():
                done = (r for r in self._left if isinstance(r.event, HostRolledBack))
                return LoggedTicket(self, next(done, None), answer=True)
        return Acknowledged()


def _closes(event: Event) -> bool:
    return isinstance(event, BreakerChanged) and event.state == "closed"


def _answer(reason: str) -> bool | None:
    """Whether a decision that lapsed for ``reason`` had been acknowledged; None where nobody asked
    any more."""
    if reason == OVERTAKEN or reason.startswith(FAILED):
        return True
    return False if reason == UNANSWERED else None


def _timeless(event: Event) -> bytes:
    return encode_event(msgspec.structs.replace(event, time=0.0))


def _brief(event: Event) -> str:
    fields = msgspec.structs.asdict(event)
    fields.pop("time")
    shown = ", ".join(f"{name}={value!r}" for name, value in fields.items())
    return f"{type(event).__struct_config__.tag} ({shown[:300]})"
