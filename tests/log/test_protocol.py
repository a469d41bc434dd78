"""Decide, append, acknowledge, apply on real stores, with everything that can happen in between.

The promises are those of ``models/README.md``; here they are put to the code. ``make
protocol-campaign`` does the same for longer.
"""

from __future__ import annotations

import itertools
import os
import signal
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from esper.log.endpoint import Endpoint
from esper.log.errors import ConflictError, StoreUnavailableError
from esper.log.jetstream import JetStreamStore
from esper.log.journal import JournalStore
from esper.log.repair import repair_replica
from esper.log.settling import Acknowledgement
from esper.log.sources import UserSource
from esper.log.workspace import Workspace
from esper.projections.lattice import fold_all
from esper.tolaria import breaker, decisions
from esper.tolaria.catch_up import CatchUpLog
from esper_events.events import Event, Record, TransitionDecided
from esper_events.framing import frame
from esper_events.stages import Stage
from esper_events.verify import verify_path
from support.fake_log import Clock
from support.log_runs import UserServer, ended, wait_until
from support.protocol import KEY, MortalJournal, TellingLog, Trainer, on_disk, without_copy

EXAMPLES = int(os.environ.get("ESPER_PROTOCOL_EXAMPLES", "12"))
STEPS = 30

alive = precondition(lambda self: self.log is not None)
dead = precondition(lambda self: self.log is None)


class Protocol(RuleBasedStateMachine):
    """The reference: ``base``, what the log held when it was opened, then what it was told since;
    ``sure`` of these events were acknowledged at one time or another."""

    server: UserServer
    clock: Clock
    numbers: itertools.count[int]
    root: Path

    def __init__(self) -> None:
        super().__init__()
        self.log: TellingLog | None = None
        self.log_id = ""
        self.serving = True

    @initialize(ack=st.sampled_from(("journal", "jetstream")))
    def begin(self, ack: Acknowledgement) -> None:
        self.ack = ack
        self.log_id = f"p-{next(self.numbers)}"
        self.directory = self.root / self.log_id
        self.path = self.directory / "journal" / "segments"
        self.script: list[list[int]] = []
        self.expected: list[Event] = []
        self.sure = 0
        self.late: JetStreamStore | None = None
        self.open(0.0)

    # --- the process ---

    def open(self, elapsed: float) -> None:
        """Go on with what is on disk, at ``elapsed`` seconds a step until the head is reached."""
        self.journal = MortalJournal(self.directory / "journal")
        source = UserSource(Endpoint(self.server.url), self.log_id, timeout=0.3)
        self.log = log = TellingLog(
            self.journal, KEY, self.log_id, source, self.ack, run_dir=self.directory
        )
        held = on_disk(self.path)
        assert held == self.expected[: len(held)]
        assert len(held) >= self.sure
        self.base = held
        if self.ack == "jetstream" and not self.serving:
            assert not log.records()  # Nobody can have acknowledged them to this process.
            assert log.flush(0.05) is not bool(held)
            self.start_server()
        assert log.flush(20)
        followed = CatchUpLog(log)
        self.trainer = Trainer(followed, self.may_apply)
        for step, wants in enumerate(self.script, start=1):
            self.clock.now += elapsed
            self.trainer.step(step, wants)
        assert followed.behind == 0

    def may_apply(self, decision: int) -> None:
        """No unacknowledged change is applied, whoever says that it was acknowledged."""
        for told in (without_copy(self.log.records()), on_disk(self.path)):
            assert decision in [e.decision for e in told if isinstance(e, TransitionDecided)]

    @alive
    @rule(
        wants=st.sampled_from(([0, 1], [1, 0], [0], [1], [])),
        elapsed=st.sampled_from((0.0, 0.5, 3.0)),
        prompt=st.booleans(),
    )
    def train(self, wants: list[int], elapsed: float, prompt: bool) -> None:
        self.clock.now += elapsed
        if prompt and self.journal.free.is_set() and (self.serving or self.ack == "journal"):
            assert self.log.flush(20)
        self.script.append(wants)
        self.trainer.step(len(self.script), wants)

    @alive
    @rule()
    def hold_up(self) -> None:
        self.journal.free.clear()

    @alive
    @rule()
    def let_go(self) -> None:
        self.journal.free.set()

    @alive
    @rule(cut=st.floats(0, 1))
    def kill(self, cut: float) -> None:
        self.acknowledged_stays()
        log, self.log = self.log, None
        self.journal.cut = cut
        self.journal.free.set()
        log.close(0.2)
        wait_until(lambda: not log._thread.is_alive())
        self.journal.close()
        self.expected = self.base + log.told

    @dead
    @rule(elapsed=st.sampled_from((0.0, 3.0)))
    def resume(self, elapsed: float) -> None:
        self.open(elapsed)

    @alive
    @rule()
    def rival(self) -> None:
        with pytest.raises(ConflictError, match="another process"):
            JournalStore(self.directory / "journal")
        with pytest.raises(ConflictError, match="being written by a run"):
            repair_replica(self.directory, Workspace(self.root / "w"), self.server.url)

    # --- the server ---

    @precondition(lambda self: self.serving)
    @rule(silent=st.booleans())
    def stop_server(self, silent: bool) -> None:
        if silent:
            self.server.signal(signal.SIGSTOP)
        else:
            self.server.kill()
        self.serving = False

    @precondition(lambda self: not self.serving)
    @rule()
    def start_server(self) -> None:
        if self.server.process is None:
            self.server.start()
        else:
            self.server.signal(signal.SIGCONT)
        self.serving = True

    def copy(self) -> JetStreamStore:
        return JetStreamStore(Endpoint(self.server.url), self.log_id)

    @precondition(lambda self: self.serving and self.late is None)
    @rule()
    def leave_a_message_on_its_way(self) -> None:
        self.late = self.copy()

    @precondition(lambda self: self.serving and self.late is not None)
    @rule()
    def let_it_arrive(self) -> None:
        """What the replica published and gave up for lost, or what a doubled message holds."""
        store, self.late = self.late, None
        with closing(store), suppress(StoreUnavailableError):  # It may have gone with its server.
            for segment in itertools.islice(self.journal.read(store.count), 1):
                store.append(store.count, segment)

    @precondition(lambda self: self.log is None and self.serving)
    @rule()
    def repair(self) -> None:
        JournalStore(self.directory / "journal").close()  # sets a torn tail aside
        if not on_disk(self.path):
            return
        done = repair_replica(self.directory, Workspace(self.root / "w"), self.server.url)
        assert repair_replica(self.directory, Workspace(self.root / "w"), self.server.url).sent == 0
        assert self.copied() == done.segments

    def copied(self) -> int:
        """Segments on the server, each of which is the journal's."""
        store, journal = self.copy(), self.path.read_bytes()
        held = list(store.read())
        store.close()
        assert journal.startswith(b"".join(map(frame, held)))
        return len(held)

    # --- what holds ---

    @invariant()
    def acknowledged_stays(self) -> None:
        """Once, in order, on disk, and as many as any ticket or record ever said."""
        if self.log is None:
            return
        told = self.base + self.log.told
        kept = without_copy(self.log.records())
        assert kept == told[: len(kept)]
        promised = [count for count, ticket in self.log.promises if ticket.acknowledged]
        self.sure = max(self.sure, len(kept), len(self.base) + max(promised, default=0))
        disk = on_disk(self.path)
        assert disk == told[: len(disk)]
        assert len(disk) >= self.sure

    @invariant()
    def the_lattice_is_what_its_log_tells(self) -> None:
        if self.log is None:
            return
        told = [Record(*entry) for entry in enumerate(self.base + self.log.told)]
        stages = {seed: state.stage for seed, state in fold_all(told).seeds.items()}
        assert {s: stages.get(s, Stage.DORMANT) for s in (0, 1)} == self.trainer.stages

    def teardown(self) -> None:
        """Whatever happened, the run can be brought to its end: every decision has its outcome,
        and both copies hold all of it."""
        if not self.serving:
            self.start_server()
        if not self.log_id:
            return
        if self.log is None:
            self.open(3.0)
        self.let_go()
        assert self.log.flush(20)
        self.trainer.conclude(len(self.script) + 1)
        self.log.append(ended())
        self.acknowledged_stays()
        summary = self.log.close(20)
        assert (self.log.failure, summary.behind) == (None, 0)
        assert on_disk(self.path) == self.base + self.log.told
        assert verify_path(self.directory, KEY.public).ok
        assert self.copied() == summary.segments
        if self.late is not None:
            self.late.close()


def test_whatever_happens_the_log_keeps_its_promises(
    tmp_path: Path, server: UserServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(decisions, "time", clock)
    monkeypatch.setattr(breaker, "time", clock)

    class Here(Protocol):
        pass

    Here.server, Here.clock, Here.numbers, Here.root = server, clock, itertools.count(), tmp_path
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Here, settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS)
    )
