"""Any interleaving of appending, flushing, failing, closing and reopening keeps the log whole."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from esper.log.event_log import EventLog
from esper.log.memory import MemoryStore
from esper.log.ticket import Ticket
from esper_events.chain import ChainVerifier
from esper_events.events import Event, Record
from esper_events.keys import SigningKey
from support.log_runs import ended, plateau, started

KEY = SigningKey.generate()


class BrittleStore(MemoryStore):
    """Memory that can be told to fail its next append."""

    broken = False

    def append(self, position: int, segment: bytes) -> None:
        if self.broken:
            raise OSError("told to fail")
        super().append(position, segment)


class LogMachine(RuleBasedStateMachine):
    """The model: events whose ticket was acknowledged, in the order of appending."""

    def __init__(self) -> None:
        super().__init__()
        self.medium: list[bytes] = []
        self.expected: list[Event] = []
        self.pending: list[tuple[Ticket, list[Event]]] = []
        self.ended = False
        self._open()

    def _open(self) -> None:
        self.store = BrittleStore(self.medium)
        self.log = EventLog(self.store, KEY, "r")
        assert [r.event for r in self.log.records()] == self.expected
        if not self.expected:
            self._append([started(KEY)])

    def _append(self, events: list[Event]) -> None:
        self.pending.append((self.log.append(*events), events))

    def _settle(self) -> None:
        for ticket, events in self.pending:
            if ticket.wait(5):
                assert not events or ticket.first_index == len(self.expected)
                self.expected += events
            else:
                assert ticket.error is not None
        self.pending.clear()

    @precondition(lambda self: not self.ended)
    @rule(steps=st.lists(st.integers(0, 9), max_size=3))
    def append(self, steps: list[int]) -> None:
        self._append([plateau(step) for step in steps])

    @precondition(lambda self: not self.ended)
    @rule()
    def end(self) -> None:
        self._append([ended()])
        self.ended = True

    @rule()
    def flush(self) -> None:
        assert self.log.flush(5) == (self.log.failure is None)
        self._settle()

    @rule()
    def break_the_store(self) -> None:
        """Between two appends, so that what fails does not hang on the threads' timing."""
        self.flush()
        self.store.broken = True

    @rule()
    def reopen(self) -> None:
        summary = self.log.close()
        self._settle()
        assert summary.events == len(self.expected)
        assert summary.segments == len(self.medium)
        self.ended = self.expected[-1:] == [ended()]
        self._open()

    @invariant()
    def acknowledged_is_durable(self) -> None:
        records = self.log.records()
        assert records[: len(self.expected)] == [
            Record(index, event) for index, event in enumerate(self.expected)
        ]
        chain = ChainVerifier(KEY.public)
        durable = [record for segment in list(self.medium) for record in chain.accept(segment)]
        assert durable[: len(records)] == records

    def teardown(self) -> None:
        self.log.close()


LogMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
TestLogMachine = LogMachine.TestCase
