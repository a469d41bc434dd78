"""A job goes on, whoever dies; it ends with the bits that a re-run of its log has."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

from esper.log.keyring import ROOT
from esper.tolaria import trainer
from esper.tolaria.config import parse
from esper.tolaria.logged import read_run
from esper.tolaria.observer import Silent
from esper_events.events import RunTakenOver
from esper_events.reader import LogReader
from support.command import SMALL
from support.daemons import Site, kill, site
from support.log_runs import UserServer, is_alive

PATIENT = """
import time
from collections import OrderedDict
from pathlib import Path
from torch import nn


class Patient(nn.Sequential):
    def forward(self, x):
        if not (Path(__file__).parent / "hurry").exists():
            time.sleep(0.03)
        return super().forward(x)


def model():
    layers = {"layer1": nn.Linear(64, 4), "act1": nn.ReLU(), "head": nn.Linear(4, 10)}
    return Patient(OrderedDict(layers))
"""
"""A model that takes its time, so that there is enough for all that is to happen to its run."""

CONFIG = SMALL.replace("hidden = [4]", 'factory = "patient:model"').replace(
    "[data]", "checkpoint_every = 10\n[data]"
)


def under_one_root(one: Site, other: Site) -> None:
    """Let one root key vouch for the keys of both workspaces."""
    one.workspace.keys.create(ROOT)
    mine, theirs = one.workspace.keys.file(ROOT).parent, other.workspace.keys.file(ROOT).parent
    theirs.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in mine.glob(f"{ROOT}.*"):
        shutil.copy(path, theirs)
    for each in (one, other):
        each.workspace.keys.certify()


def whole(directory: Path) -> str:
    """The final weights of the run that nothing interrupts."""
    log = f'[log]\nworkspace = "{directory / "workspace"}"\n'
    run, config = directory / "whole", parse(CONFIG + log, directory)
    return trainer.grow(config, run_dir=run, nats=None, seed=0, observer=Silent()).final_weights


def test_a_job_outlives_its_process_its_daemon_and_its_machine(
    tmp_path: Path, server: UserServer
) -> None:
    with site(tmp_path / "one", server) as one, site(tmp_path / "two", server) as two:
        under_one_root(one, two)
        (tmp_path / "patient.py").write_text(PATIENT)
        one.submit("job", CONFIG, directory=str(tmp_path))
        one.start()
        one.wait_for_step("job", 0)
        first = one.trainers()
        kill(first[0])
        one.wait_until(lambda: one.trainers() not in ([], first))
        assert [grant.epoch for grant in one.grants("job")] == [0], "the daemon has it still"
        reached = one.step("job")
        one.wait_for_step("job", reached)

        second = one.trainers()
        one.signal(signal.SIGKILL)
        one.wait_until(lambda: not is_alive(second[0]))
        two.start()
        two.wait("job", lambda job: job.epoch == 1)
        two.wait_for_step("job", 0)
        two.signal(signal.SIGTERM)
        assert two.ended() == 0
        released = two.wait("job", lambda job: job.state == "waiting")
        assert released.reason == "the daemon stops"

        (tmp_path / "hurry").touch()
        one.start()
        job = one.wait("job", lambda job: job.state == "ended")
        assert (job.outcome, job.epoch, job.expired) == ("completed", 2, 1)
        run = one.run_dir("job")
        records = list(LogReader(run).records())
        taken = [r.event for r in records if isinstance(r.event, RunTakenOver)]
        assert [event.epoch for event in taken] == [1, 2]
        again = trainer.rerun(read_run(run), to=None, directory=tmp_path, observer=Silent())
        assert again.identical
        assert again.final_weights == whole(tmp_path)
        one.wait_until(lambda: not one.link.queue.jobs())
