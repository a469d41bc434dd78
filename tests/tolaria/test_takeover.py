"""A run that goes from machine to machine, while the one before is only paused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.log.errors import FencedError
from esper.log.objects import named_objects, path_of
from esper.log.run import repair_replica, resume_run_log
from esper.tolaria import trainer
from esper.tolaria.config import parse
from esper.tolaria.logged import read_run
from esper.tolaria.observer import Silent
from esper_events.events import RunEnded, RunTakenOver
from esper_events.framing import JOURNAL
from esper_events.reader import LogReader
from esper_events.verify import verify_path
from support.command import SMALL, environment
from support.growth_runs import FAST, Asleep, Loop
from support.log_runs import UserServer, user_server, wait_until
from support.machines import Machine

CONFIG = SMALL.replace("[data]", "checkpoint_every = 10\n[data]").replace(
    "sync_decisions = true", "sync_decisions = true\nack_timeout = 100"
)
"""Nothing lapses, however busy the machine is."""
TRAIN = """
import sys
from pathlib import Path
from esper.log.errors import LogError
from esper.log.takeover import Lease
from esper.tolaria import trainer
from esper.tolaria.config import read
from esper.tolaria.observer import Silent

class Telling(Silent):
    def resumed(self, step):
        print("resumed", step, flush=True)

    def progress(self, step, steps, loss, accuracy):
        print("step", step, flush=True)

config, run_dir, nats, epoch, holder = sys.argv[1:6]
lease = Lease(int(epoch), holder, "job-1", "the one before is silent")
try:
    grown = trainer.grow(read(Path(config)), run_dir=Path(run_dir), nats=nats, seed=3,
        observer=Telling(), lease=lease)
    print("grown", grown.final_weights, grown.behind, grown.log_failure, flush=True)
except LogError as error:
    print(type(error).__name__, error, flush=True)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[UserServer]:
    (tmp_path / "nats").mkdir()
    yield from user_server(tmp_path / "nats")


class Training:
    """A process that trains the run in a lease epoch, and what it tells."""

    def __init__(self, machine: Machine, epoch: int, server: UserServer) -> None:
        config = machine.directory / "config.toml"
        config.write_text(f'{CONFIG}[log]\nack = "jetstream"\n')
        arguments = [config, machine.run_dir, server.url, epoch, machine.name]
        self.told: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-c", TRAIN, *map(str, arguments)],
            env=environment(machine.workspace.path) | {"ESPER_NATS_MONITOR": server.monitor},
            stdout=subprocess.PIPE,
            text=True,
        )

    def reaches(self, step: int) -> None:
        """Let it train up to ``step`` at least."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.told.append(line.strip())
            if line.startswith("step ") and int(line.split()[1]) >= step:
                return
        raise AssertionError(self.told)

    def send(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def ends(self) -> str:
        """Let it come to its end; its last word."""
        assert self._process.stdout is not None
        self.told += [line.strip() for line in self._process.stdout]
        self._process.wait()
        return self.told[-1]


def test_a_run_that_another_machine_takes_over_ends_as_if_it_had_never_left(
    tmp_path: Path, server: UserServer
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    here = Machine(tmp_path / "a")
    there = Machine(tmp_path / "b", here)
    config = parse(f'{CONFIG}[log]\nworkspace = "{tmp_path}/whole"\n', tmp_path)
    whole = trainer.grow(
        config, run_dir=tmp_path / "run", nats=server.url, seed=3, observer=Silent()
    )

    paused = Training(here, 0, server)
    paused.reaches(300)
    paused.send(signal.SIGSTOP)
    killed = Training(there, 1, server)
    killed.reaches(375)
    killed.send(signal.SIGKILL)
    killed.ends()
    last = Training(there, 1, server)
    assert last.ends() == f"grown {whole.final_weights} 0"
    for training in (killed, last):
        assert training.told[0].startswith("resumed ")
        assert training.told[0] != "resumed 0"

    paused.send(signal.SIGCONT)
    word = paused.ends()
    assert word.startswith("FencedError run job-1 was taken over by b in lease epoch 1")
    for aside in (True, False):
        with pytest.raises(FencedError, match="taken over by b") as refused:
            resume_run_log(
                here.run_dir,
                workspace=here.workspace,
                nats=server.url,
                ack="jetstream",
                accept_unproved=True,
            )
        assert ("it lies in" in str(refused.value)) is aside
    assert here.quarantine[0].startswith("epoch-0-event-")
    history = (there.run_dir / JOURNAL).read_bytes()
    assert history.startswith((here.run_dir / JOURNAL).read_bytes())

    records = list(LogReader(there.run_dir).records())
    assert [r.event.holder for r in records if isinstance(r.event, RunTakenOver)] == ["b"]
    logged = read_run(there.run_dir)
    assert trainer.rerun(logged, to=None, directory=tmp_path, observer=Silent()).identical
    repair_replica(there.run_dir, there.workspace, server.url)  # What had not come by the end.
    objects = there.run_dir / "objects"
    assert all(path_of(objects, digest).exists() for digest in named_objects(records))
    verified = verify_path(there.run_dir)
    assert (verified.ok, verified.ended) == (True, True)


@pytest.mark.parametrize("stopped", ["at a step", "at the end"])
def test_a_loop_of_ones_own_is_stopped_when_another_has_the_run(
    tmp_path: Path, server: UserServer, stopped: str
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    here = Machine(tmp_path / "a")
    there = Machine(tmp_path / "b", here)
    loop = Loop()
    growth = loop.grow(FAST, Asleep(), log=here.take(0, server.url))
    loop.run(3)
    assert growth.log.flush(20)
    there.take(1, server.url).close()
    if stopped == "at a step":
        wait_until(lambda: growth.log.fenced is not None, 30)
        with pytest.raises(FencedError, match="taken over by b in lease epoch 1"):
            loop.run(FAST.observe_every)
        growth.close("failed", "another has the run")
    else:
        with pytest.raises(FencedError, match="taken over by b in lease epoch 1"):
            growth.close()
    ended = [r for r in LogReader(there.run_dir).records() if isinstance(r.event, RunEnded)]
    assert ended == []
