"""A log whose acknowledgements and whose clock are at the test's command."""

from __future__ import annotations

from dataclasses import dataclass, field

from esper.log.objects import digest_of
from esper_events.events import Event, Record


@dataclass
class Clock:
    """Stands in for the ``time`` module."""

    now: float = 0.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


@dataclass
class FakeTicket:
    """Acknowledged when the test says so, or while somebody waits for it."""

    log: FakeLog
    acknowledged: bool = False
    error: BaseException | None = None
    foretold: bool = False

    def wait(self, timeout: float) -> bool:
        if not self.acknowledged and self.error is None:
            self.log.clock.now += min(timeout, self.log.answers_after)
            self.acknowledged = timeout >= self.log.answers_after
            self.log.waits.append(timeout)
        return self.acknowledged


@dataclass
class FakeLog:
    """Keeps events; acknowledges at once while ``good``, else only for those who wait for
    ``answers_after`` seconds."""

    clock: Clock
    good: bool = False
    answers_after: float = float("inf")
    events: list[Event] = field(default_factory=list)
    tickets: list[FakeTicket] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def append(self, *events: Event) -> FakeTicket:
        self.events += events
        self.tickets.append(FakeTicket(self, acknowledged=self.good))
        return self.tickets[-1]

    def keep(self, data: bytes) -> str:
        return digest_of(data)

    def records(self, start: int = 0) -> list[Record]:
        return [Record(n, event) for n, event in enumerate(self.events)][start:]

    def acknowledge(self) -> None:
        """Acknowledge all that was appended."""
        for ticket in self.tickets:
            ticket.acknowledged = ticket.error is None

    def of(self, kind: type[Event]) -> list[Event]:
        """Events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]
