"""The protocol of the log at work on real files, threads and a real server, to be tormented.

A trainer that does nothing but decide keeps to a script: which seeds it wants to advance at which
step. Killed, it goes through the script again over its log (`CatchUpLog`), as training does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from esper.log.event_log import EventLog
from esper.log.journal import JournalStore
from esper.log.ticket import Ticket
from esper.tolaria.catch_up import CatchUpLog
from esper.tolaria.decisions import Change, Decisions, Effect
from esper.tolaria.settings import GrowthSettings
from esper_events.chain import ChainVerifier
from esper_events.errors import ChainError
from esper_events.events import Event, Record, ReplicaChanged
from esper_events.framing import frame, read_frames
from esper_events.keys import SigningKey
from esper_events.stages import Stage
from support.event_runs import BLUEPRINT, UP, blueprint, lattice
from support.log_runs import started

KEY = SigningKey.generate()
SLOTS = ("fc", "head")
ACK_SECONDS = 2.0
SETTINGS = GrowthSettings(lead=2, ack_timeout=ACK_SECONDS, breaker_limit=2, breaker_cooldown=3)


class MortalJournal(JournalStore):
    """The real journal, of a process that can be held up, and killed in the middle of a write."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.free = threading.Event()
        self.free.set()
        self.cut: float | None = None
        """Killed: the next append gets as far as this part of its bytes, and is never synced."""

    def append(self, position: int, segment: bytes) -> None:
        self.free.wait()
        if self.cut is not None:
            framed = frame(segment)
            with self.path.open("ab") as file:
                file.write(framed[: round(self.cut * len(framed))])
            raise OSError("the process was killed")
        super().append(position, segment)


class TellingLog(EventLog):
    """An event log that keeps what it was given, with the tickets."""

    def __init__(self, *arguments: object, **options: object) -> None:
        self.told: list[Event] = []
        self.promises: list[tuple[int, Ticket]] = []
        """How much was told with each ticket."""
        super().__init__(*arguments, **options)  # type: ignore[arg-type]

    def append(self, *events: Event) -> Ticket:
        ticket = super().append(*events)
        self.told += events
        self.promises.append((len(self.told), ticket))
        return ticket


class Trainer:
    """Takes seeds up their way, stage by stage, as the script wants and the log lets it."""

    def __init__(self, log: CatchUpLog, allowed: Callable[[int], None]) -> None:
        """``allowed`` is told the number of a decision right before it is applied."""
        self.log = log
        self.decisions = Decisions(log, SETTINGS)
        self.stages = dict.fromkeys(range(len(SLOTS)), Stage.DORMANT)
        self._allowed = allowed
        self._decided = 0
        log.append(started(KEY, log.log_id))
        log.append(lattice(*SLOTS), blueprint())

    def step(self, step: int, wants: Sequence[int]) -> None:
        """One safe point."""
        self.log.step = step
        self.decisions.settle(step)
        if not self.decisions.allowed(step):
            return
        for seed in wants:
            if self.stages[seed] is not UP[-1] and not self.decisions.pending(seed):
                self.decisions.decide(step, self._change(seed))

    def conclude(self, step: int) -> None:
        """As a run does that ends: what the log does not answer now lapses."""
        self.log.step = step
        self.decisions.settle(step, wait=True)
        self.decisions.abandon(step, "the run ends")

    def _change(self, seed: int) -> Change:
        source = self.stages[seed]
        target = UP[UP.index(source) + 1]
        number, self._decided = self._decided, self._decided + 1

        def apply(_: int) -> Effect:
            self._allowed(number)
            self.stages[seed] = target
            return Effect("weights")

        return Change(
            seed=seed,
            slot=SLOTS[seed],
            blueprint=BLUEPRINT,
            source=source,
            target=target,
            reason="the script wants it",
            apply=apply,
            still_holds=lambda: self.stages[seed] is source,
            lapsed=lambda: None,
        )


def without_copy(records: Sequence[Record]) -> list[Event]:
    """What the trainer told: the standing of the copy comes from a thread of its own."""
    return [r.event for r in records if not isinstance(r.event, ReplicaChanged)]


def on_disk(path: Path) -> list[Event]:
    """What the journal tells, read as an auditor would, up to a tail that is being written."""
    chain, records = ChainVerifier(KEY.public), list[Record]()
    try:
        with path.open("rb") as file:
            for at, segment in read_frames(file):
                records += chain.accept(segment, at)
    except ChainError:
        pass
    return without_copy(records)
