"""Two machines, one stream: leases, takeovers, late messages and kills, put to the real stores.

The promises are those of ``models/takeover.pml``: no change is applied that the history does not
hold, none that was acknowledged is lost or told twice, and one writer has the run. ``make
protocol-campaign`` does the same for longer.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
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

from esper.log import locks, opening, takeover
from esper.log.endpoint import Endpoint
from esper.log.errors import LogError, StoreUnavailableError
from esper.log.jetstream import JetStreamStore
from esper.log.sources import UserSource
from esper.log.takeover import Lease, take_over_run_log
from esper.log.workspace import Workspace
from esper.tolaria import breaker, decisions
from esper.tolaria.catch_up import CatchUpLog
from esper_events.chain import ChainVerifier
from esper_events.events import Event, TransitionDecided
from esper_events.segment import open_segment
from esper_events.verify import verify_path
from support.fake_log import Clock
from support.log_runs import UserServer, ended, wait_until
from support.protocol import KEY, MortalJournal, TellingLog, Trainer, without_copy

EXAMPLES = int(os.environ.get("ESPER_PROTOCOL_EXAMPLES", "12"))
STEPS = 30


class KilledError(BaseException):
    """The process was killed here."""


class Fuse:
    """Stands in for ``os.fsync``: the process is killed at the one that it was lit for, of those
    that the takeover waits for."""

    def __init__(self) -> None:
        self.left: int | None = None
        self._sync = os.fsync

    def __call__(self, descriptor: int) -> None:
        if self.left is not None and threading.current_thread().name != "esper-replica":
            self.left -= 1
            if self.left < 0:
                raise KilledError
        self._sync(descriptor)


class Machine:
    """What one machine has: a directory, and while a trainer runs its log."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.epoch = -1
        self.log: TellingLog | None = None
        self.trainer: Trainer | None = None

    def kill(self, cut: float) -> None:
        log, self.log = self.log, None
        if log is not None:
            journal = log._journal
            assert isinstance(journal, MortalJournal)
            journal.cut = cut
            log.close(0.2)
            wait_until(lambda: not log._thread.is_alive())
            journal.close()


class Protocol(RuleBasedStateMachine):
    """``sure`` is the longest history that anybody was told is acknowledged; ``scripts`` what the
    trainer of each epoch was to want, step by step."""

    server: UserServer
    clock: Clock
    fuse: Fuse
    numbers: itertools.count[int]
    root: Path

    def __init__(self) -> None:
        super().__init__()
        self.log_id = ""
        self.serving = True

    @initialize()
    def begin(self) -> None:
        self.log_id = f"t-{next(self.numbers)}"
        self.machines = [Machine(self.root / self.log_id / name) for name in "ab"]
        self.sure: list[Event] = []
        self.epoch = 0
        self.holder = self.machines[0]
        self.scripts: dict[int, list[list[int]]] = {}
        self.late: tuple[JetStreamStore, bytes] | None = None
        self.open(None)

    # --- leases ---

    @rule(to=st.sampled_from((0, 1)), fuse=st.none() | st.integers(0, 12))
    def grant(self, to: int, fuse: int | None) -> None:
        """The lease is said to have ended, whatever its holder does, and is given anew."""
        self.epoch += 1
        self.holder = self.machines[to]
        self.holder.kill(1.0)
        self.open(fuse)

    @rule(fuse=st.none() | st.integers(0, 12))
    def go_on(self, fuse: int | None) -> None:
        """A killed takeover, or trainer, is begun again under the lease that it has."""
        if self.holder.log is None:
            self.open(fuse)

    def open(self, fuse: int | None) -> None:
        machine = self.holder
        lease = Lease(self.epoch, machine.run_dir.name, self.log_id)
        workspace = Workspace(self.root / "workspace")
        self.fuse.left = fuse
        try:
            log = take_over_run_log(
                machine.run_dir, lease, workspace=workspace, nats=self.server.url
            )
        except KilledError:
            for lock in list(locks._OPEN):
                if lock.path.is_relative_to(machine.run_dir):
                    lock.release()  # As the kernel does.
            return
        except StoreUnavailableError:
            assert not self.serving
            return
        finally:
            self.fuse.left = None
        assert isinstance(log, TellingLog)
        machine.log, machine.epoch = log, self.epoch
        self.train_again(machine, log)

    def train_again(self, machine: Machine, log: TellingLog) -> None:
        """To the head of its log, by the script of whoever wrote that."""
        epochs = [open_segment(segment).epoch for segment in log._journal.read()]
        before = [e for e in epochs if e != self.epoch]
        if self.epoch not in self.scripts:
            self.scripts[self.epoch] = list(self.scripts.get((before or [0])[-1], []))
        followed = CatchUpLog(log)

        def may_apply(decision: int) -> None:
            told = without_copy(log.records())
            assert decision in [e.decision for e in told if isinstance(e, TransitionDecided)]

        machine.trainer = Trainer(followed, may_apply)
        for step, wants in enumerate(self.scripts[self.epoch], start=1):
            machine.trainer.step(step, wants)
        assert followed.behind == 0

    # --- trainers ---

    @rule(
        which=st.sampled_from((0, 1)),
        wants=st.sampled_from(([0, 1], [1, 0], [0], [1], [])),
        elapsed=st.sampled_from((0.0, 0.5, 3.0)),
        prompt=st.booleans(),
    )
    def train(self, which: int, wants: list[int], elapsed: float, prompt: bool) -> None:
        """Also of a machine that has lost its lease, and does not know."""
        machine = self.machines[which]
        if machine.log is None or machine.trainer is None:
            return
        self.clock.now += elapsed
        if prompt and self.serving:
            machine.log.flush(20)
        if machine.log.fenced is not None:
            assert machine is not self.holder or machine.epoch < self.epoch
            machine.kill(1.0)
            return
        script = self.scripts[machine.epoch]
        script.append(wants)
        machine.trainer.step(len(script), wants)

    @rule(which=st.sampled_from((0, 1)), cut=st.floats(0, 1))
    def kill(self, which: int, cut: float) -> None:
        self.acknowledged_stays()
        self.machines[which].kill(cut)

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

    @precondition(lambda self: self.serving)
    @rule(which=st.sampled_from((0, 1)))
    def leave_a_message_on_its_way(self, which: int) -> None:
        """A segment whose publish was given up for lost, or is doubled."""
        log = self.machines[which].log
        if log is None or self.late is not None:
            return
        store = JetStreamStore(Endpoint(self.server.url), self.log_id)
        held = list(itertools.islice(log._journal.read(store.count), 1))
        if held:
            self.late = (store, held[0])
        else:
            store.close()

    @precondition(lambda self: self.serving)
    @rule()
    def let_it_arrive(self) -> None:
        if self.late is None:
            return
        (store, segment), self.late = self.late, None
        with closing(store), suppress(LogError):  # Too late, or its server has gone meanwhile.
            store.append(store.count, segment)

    # --- what holds ---

    @invariant()
    def acknowledged_stays(self) -> None:
        """Whoever was told: all histories that were acknowledged are one."""
        for machine in self.machines if self.log_id else ():
            if machine.log is not None:
                told = [record.event for record in machine.log.records()]
                shorter = min(len(told), len(self.sure))
                assert told[:shorter] == self.sure[:shorter]
                self.sure = max(told, self.sure, key=len)

    def teardown(self) -> None:
        """Whatever happened, the run can be taken over and brought to its end; who had it before is
        fenced off."""
        if not self.serving:
            self.start_server()
        if not self.log_id:
            return
        self.acknowledged_stays()
        self.grant(0, None)
        log, trainer = self.holder.log, self.holder.trainer
        assert log is not None
        assert trainer is not None
        assert log.flush(20)
        trainer.conclude(len(self.scripts[self.epoch]) + 1)
        log.append(ended())
        assert log.close(20).behind == 0
        assert log.failure is None
        self.acknowledged_stays()
        self.check_history(log)
        other = self.machines[1].log  # It is told nothing, and asks.
        if other is not None:
            wait_until(lambda: other.fenced is not None)
            self.machines[1].kill(1.0)
        if self.late is not None:
            self.late[0].close()

    def check_history(self, log: TellingLog) -> None:
        """The stream is the journal's, has all that was acknowledged, and one writer at a time."""
        with closing(JetStreamStore(Endpoint(self.server.url), self.log_id)) as store:
            segments = list(store.read())
        assert segments == list(MortalJournal(self.holder.run_dir / "journal").read())
        chain = ChainVerifier()
        told = [record.event for segment in segments for record in chain.accept(segment)]
        assert told[: len(self.sure)] == self.sure
        epochs = [open_segment(segment).epoch for segment in segments]
        assert epochs == sorted(epochs)
        assert verify_path(self.holder.run_dir, KEY.public).ok
        self.holder.log = None


def test_whatever_happens_one_history_is_told(
    tmp_path: Path, server: UserServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, fuse = Clock(), Fuse()
    monkeypatch.setattr(decisions, "time", clock)
    monkeypatch.setattr(breaker, "time", clock)
    monkeypatch.setattr(os, "fsync", fuse)
    monkeypatch.setattr(opening, "JournalStore", MortalJournal)
    monkeypatch.setattr(opening, "EventLog", TellingLog)
    monkeypatch.setattr(opening, "is_proved", lambda _: True)
    monkeypatch.setattr(
        opening,
        "source_for",
        lambda log, _, nats: UserSource(Endpoint(nats), log, timeout=0.3),
    )
    monkeypatch.setattr(takeover, "_ANSWER_SECONDS", 5.0)
    workspace = Workspace(tmp_path / "workspace")
    workspace.path.joinpath("keys").mkdir(parents=True)
    KEY.save(workspace.path / "keys" / "trainer.key", b"")
    KEY.public.save(workspace.path / "keys" / "trainer.pub")

    class Here(Protocol):
        pass

    Here.server, Here.clock, Here.fuse = server, clock, fuse
    Here.numbers, Here.root = itertools.count(), tmp_path
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Here, settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS)
    )
