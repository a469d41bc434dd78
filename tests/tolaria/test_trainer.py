from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from esper.log.run import repair_replica
from esper.log.sources import EmbeddedSource
from esper.log.workspace import Workspace
from esper.projections.lattice import fold_all
from esper.tolaria import trainer
from esper.tolaria.config import Config, parse
from esper.tolaria.logged import read_run
from esper.tolaria.observer import Outcome, Silent
from esper.tolaria.trainer import train
from esper_events.events import (
    PlateauDetected,
    Record,
    ReplicaChanged,
    RunEnded,
    RunStarted,
    TransitionApplied,
    TransitionDecided,
)
from esper_events.framing import JOURNAL, read_frames
from esper_events.reader import LogReader
from esper_events.stages import Stage
from esper_events.verify import verify_path
from support.command import SMALL
from support.log_runs import is_alive, published, wait_until

CONFIG = """
[run]
steps = 260
[data]
name = "digits"
[model]
hidden = [3]
[optimizer]
lr = 1e-2
[growth]
observe_every = 20
warmup = 20
patience = 1
plateau = 1.0
trials = 2
trial_steps = 40
rungs = 1
blend_steps = 20
stabilize_steps = 10
evaluate_steps = 60
lead = 4
sync_decisions = true
blueprints = ["widen"]
max_growths = 1
"""
"""A run of a second or two that surely grows once."""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("ESPER_WORKSPACE", str(tmp_path / "workspace"))
    return Workspace()


def small(directory: Path) -> Config:
    return parse(CONFIG, directory)


class Watching(Silent):
    """Keeps what it is told, and calls ``act`` when a seed enters a stage."""

    def __init__(self, **act: Callable[[], None]) -> None:
        self.records: list[Record] = []
        self.parts: list[str] = []
        self.steps: list[int] = []
        self._act = act
        self._decided: dict[int, TransitionDecided] = {}

    def part(self, name: str, steps: int) -> None:
        self.parts.append(name)

    def progress(self, step: int, steps: int, loss: float, accuracy: float | None) -> None:
        self.steps.append(step)

    def event(self, record: Record) -> None:
        self.records.append(record)
        if isinstance(record.event, TransitionDecided):
            self._decided[record.event.decision] = record.event
        if isinstance(record.event, TransitionApplied):
            target = self._decided[record.event.decision].target
            self._act.pop(target.value, lambda: None)()


def run(directory: Path, watching: Watching | None = None) -> tuple[Outcome, list[Record]]:
    outcome = train(
        small(directory.parent),
        run_dir=directory,
        nats=None,
        seed=0,
        observer=watching or Watching(),
    )
    return outcome, list(LogReader(directory).records())


def story(records: list[Record]) -> list[tuple[object, ...]]:
    """Every transition with its step, its seed and the digest of its weights."""
    decided = {r.event.decision: r.event for r in records if isinstance(r.event, TransitionDecided)}
    applied = [r.event for r in records if isinstance(r.event, TransitionApplied)]
    return [
        (a.step, decided[a.decision].seed, decided[a.decision].target, a.seed_weights)
        for a in applied
    ]


def server_of(workspace: Workspace) -> int:
    """The process of the workspace's server, once it runs."""
    wait_until((workspace.path / "server" / "endpoint.json").exists)
    return int(published(workspace.path / "server")["pid"])


def copy_is_whole(directory: Path, workspace: Workspace, log: str) -> bool:
    source = EmbeddedSource(workspace.attach_server(), log)
    store = source.connect()
    try:
        with (directory / JOURNAL).open("rb") as file:
            return list(store.read()) == [segment for _, segment in read_frames(file)]
    finally:
        store.close()
        source.close()


def test_a_run_grows_is_compared_and_is_whole_on_the_record(
    tmp_path: Path, workspace: Workspace
) -> None:
    watching = Watching()
    outcome, records = run(tmp_path / "one", watching)
    assert watching.parts == ["grown", "host alone", "grown shape from the start"]
    assert watching.steps[-1] == outcome.steps == 260
    assert watching.records == records
    kinds = [type(record.event) for record in records]
    assert (kinds[0], kinds[-1]) == (RunStarted, RunEnded)
    assert kinds.count(PlateauDetected) == 1
    assert [target for _, seed, target, _ in story(records)].count(Stage.FOSSILIZED) == 1

    ended = records[-1].event
    assert isinstance(ended, RunEnded)
    assert ended.outcome == "completed"
    assert ended.final_weights == outcome.final_weights
    assert ended.lattice == fold_all(records[:-1]).digest()
    assert ended.figures == {
        "test_accuracy": outcome.test_accuracy,
        "test_loss": outcome.test_loss,
    }

    report = verify_path(tmp_path / "one", workspace.key().public)
    assert (report.ok, report.events) == (True, outcome.events)
    assert (report.segments, report.head) == (outcome.segments, outcome.head)
    assert outcome.behind == 0
    assert outcome.parameters == outcome.static_parameters > outcome.control_parameters
    assert outcome.test_accuracy > outcome.control_accuracy

    # The same seed trains to the same bits by the same steps, whatever the clock did.
    torch.rand(7)
    again, records_again = run(tmp_path / "two")
    assert again.final_weights == outcome.final_weights
    assert story(records_again) == story(records)
    for name in ("test_accuracy", "test_loss", "control_loss", "static_loss", "parameters"):
        assert getattr(again, name) == getattr(outcome, name)


def test_a_server_killed_in_the_middle_is_started_again_and_made_whole(
    tmp_path: Path, workspace: Workspace
) -> None:
    def kill() -> None:
        os.kill(server_of(workspace), signal.SIGKILL)

    outcome, records = run(tmp_path / "run", Watching(germinated=kill, grafting=kill))
    assert Stage.FOSSILIZED in {target for _, _, target, _ in story(records)}
    assert outcome.behind == 0
    assert verify_path(tmp_path / "run").ok
    assert copy_is_whole(tmp_path / "run", workspace, outcome.run)


def test_a_server_that_hangs_in_the_middle_makes_nothing_wait(
    tmp_path: Path, workspace: Workspace
) -> None:
    stopped: list[int] = []

    def stop() -> None:
        stopped.append(server_of(workspace))
        os.kill(stopped[0], signal.SIGSTOP)

    def go_on() -> None:
        os.kill(stopped[0], signal.SIGCONT)

    outcome, records = run(tmp_path / "run", Watching(germinated=stop, evaluating=go_on))
    assert stopped
    assert Stage.FOSSILIZED in {target for _, _, target, _ in story(records)}
    assert verify_path(tmp_path / "run").ok
    assert outcome.behind == 0
    assert copy_is_whole(tmp_path / "run", workspace, outcome.run)


def test_a_server_that_never_comes_back_is_repaired_afterwards(
    tmp_path: Path, workspace: Workspace
) -> None:
    pids: list[int] = []

    def stop() -> None:
        pids.append(server_of(workspace))
        pids.append(int(published(workspace.path / "server")["supervisor"]))
        os.kill(pids[0], signal.SIGSTOP)

    try:
        outcome, records = run(tmp_path / "run", Watching(training=stop))
    finally:
        os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, pids)))
    ended = records[-1].event
    assert isinstance(ended, RunEnded)
    assert ended.outcome == "completed"
    assert outcome.behind > 0
    assert verify_path(tmp_path / "run").ok
    lagging = [r.event for r in records if isinstance(r.event, ReplicaChanged)]
    assert all(event.state == "lagging" for event in lagging[-1:])
    repaired = repair_replica(tmp_path / "run", workspace)
    assert repaired.segments == outcome.segments
    # One segment is in flight at a time: the server may hold it without having said so.
    assert outcome.behind - 1 <= repaired.sent <= outcome.behind
    assert copy_is_whole(tmp_path / "run", workspace, outcome.run)


def test_a_run_with_a_schedule_is_trained_again_to_the_same_bits(tmp_path: Path) -> None:
    log = f'[log]\nworkspace = "{tmp_path / "workspace"}"\n'
    chosen = parse(SMALL + log + '[schedule]\nkind = "cosine"\nwarmup = 20\n', tmp_path)
    run = tmp_path / "run"
    trainer.grow(chosen, run_dir=run, nats=None, seed=0, observer=Silent())
    for to in (300, None):
        report = trainer.rerun(read_run(run), to=to, directory=tmp_path, observer=Silent())
        assert report.identical, report.difference
