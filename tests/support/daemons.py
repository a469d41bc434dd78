"""Daemons as processes of their own, their jobs, and the processes that train those."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from esper.log.workspace import Workspace
from esper.projections.registry import JobState
from esper.tolaria.daemon.intake import job_directory
from esper.tolaria.daemon.link import Link
from esper.tolaria.daemon.orders import PROGRESS, RUN, Progress, got
from esper_events.registry import JobSubmitted, LeaseGranted, RegistryEvent
from support.command import SMALL, command, environment, heed_signals
from support.log_runs import UserServer, is_alive, wait_until

LEASE = 2.0
PATIENCE = 120.0

ENDLESS = SMALL.replace("steps = 420", "steps = 1000000").replace(
    "[data]", "checkpoint_every = 20\n[data]"
)
"""Trains until it is stopped."""


def submitted(job: str, config: str, **more: object) -> JobSubmitted:
    """A job as ``esper submit`` writes it."""
    fields: dict[str, object] = {
        "time": time.time(),
        "job": job,
        "config": config,
        "directory": "/nowhere",
        "seed": 0,
        "ack": "jetstream",
        "memory": 0,
        "seconds": 0.0,
        "attempts": 0,
    }
    return JobSubmitted(**(fields | more))  # type: ignore[arg-type]


class Site:
    """One workspace on a server (None: its own), with its daemons and what one sees from there."""

    def __init__(self, directory: Path, server: UserServer | None) -> None:
        self.directory = directory
        self.nats = nats = None if server is None else server.url
        self.monitor = "" if server is None else server.monitor
        self.workspace = Workspace(directory / "workspace")
        self.link = Link(self.workspace, nats, LEASE)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Start ``esper daemon``."""
        nats = () if self.nats is None else ("--nats", self.nats)
        arguments = command("daemon", "--lease", str(LEASE), *nats, *options)
        with (self.directory / "daemon.txt").open("ab") as told:
            self.process = subprocess.Popen(
                arguments,
                cwd=self.directory,
                env=environment(self.workspace.path) | {"ESPER_NATS_MONITOR": self.monitor},
                stdout=told,
                stderr=told,
                preexec_fn=heed_signals,
            )

    def signal(self, number: int) -> None:
        """Send a signal to the daemon."""
        if self.process is not None:
            self.process.send_signal(number)

    def ended(self) -> int:
        """Wait for the daemon's end; its exit code."""
        if self.process is None:
            raise AssertionError("no daemon was started")
        return self.process.wait(PATIENCE)

    def submit(self, job: str, config: str, **more: object) -> None:
        """Submit a job."""
        event = submitted(job, config, **more)
        self.link.registry.update(lambda _: [event])
        self.link.queue.publish(job)

    def job(self, job: str) -> JobState:
        """The job as the registry has it now."""
        return self.link.state().jobs[job]

    def wait(self, job: str, condition: Callable[[JobState], bool]) -> JobState:
        """Wait until ``condition`` holds of the job."""
        self.wait_until(lambda: condition(self.job(job)))
        return self.job(job)

    def wait_for_step(self, job: str, step: int) -> None:
        """Wait until the job has been trained here beyond ``step``."""

        def reached() -> bool:
            state = self.job(job)
            if state.state not in ("waiting", "leased"):
                raise AssertionError(f"{job} is {state.state}: {state.reason}")
            return self.step(job) > step

        self.wait_until(reached)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for ``condition``; what the daemon and its processes have said is told if it never
        holds, or when the daemon has ended."""

        def holds() -> bool:
            if self.process is not None and self.process.poll() not in (None, 0, -signal.SIGKILL):
                raise AssertionError("the daemon has failed")
            return condition()

        try:
            wait_until(holds, PATIENCE)
        except AssertionError as error:
            told = [self.directory / "daemon.txt", *self.workspace.path.glob("jobs/*/stderr")]
            texts = [f"{path}:\n{path.read_text()[-3000:]}" for path in told if path.exists()]
            raise AssertionError("\n".join([str(error), *texts])) from error

    def step(self, job: str) -> int:
        """How far its process here has told that the job is."""
        told = got(job_directory(self.workspace, job) / PROGRESS, Progress)
        return -1 if told is None else told.step

    def run_dir(self, job: str) -> Path:
        """The job's run, as it lies here."""
        return job_directory(self.workspace, job) / RUN

    def grants(self, job: str) -> list[LeaseGranted]:
        """The leases of the job so far."""
        events: list[RegistryEvent] = [record.event for record in self.link.registry.records()]
        return [e for e in events if isinstance(e, LeaseGranted) and e.job == job]

    def trainers(self) -> list[int]:
        """The processes that train, of the daemon here."""
        parent = 0 if self.process is None else self.process.pid
        return [pid for pid in _children(parent) if is_alive(pid)]

    def close(self) -> None:
        """End the daemon, however it stands, and let go of the server."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.link.close()


def _children(parent: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if int(fields[1]) == parent and b"esper.tolaria.daemon.child" in words:
                yield int(entry.name)


@contextmanager
def site(directory: Path, server: UserServer | None = None) -> Iterator[Site]:
    """A site that leaves nothing running."""
    directory.mkdir(parents=True, exist_ok=True)
    there = Site(directory, server)
    try:
        yield there
    finally:
        there.close()


def kill(pid: int) -> None:
    """Kill a process that is not ours, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), PATIENCE)
