"""The daemon: takes jobs, keeps their leases alive, sees their processes through to an end.

One thread goes round: processes are looked after without the server, then the server is told and
asked. What cannot be said now, because the server is away, is said when it is back.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from esper.log.durability import is_proved
from esper.log.endpoint import Endpoint
from esper.log.errors import LogError
from esper.log.locks import FileLock
from esper.log.queue import DEFAULT_LEASE, Delivery
from esper.log.workspace import Workspace
from esper.projections.registry import JobState
from esper.tolaria.daemon.holding import LOST_GRACE_SECONDS, Holding, Limits
from esper.tolaria.daemon.link import Link
from esper.tolaria.daemon.orders import Order
from esper.tolaria.daemon.rulings import claim, if_held
from esper_events.registry import LeaseGranted

JOBS = "jobs"
"""The directory of a workspace in which each job has one."""

N = TypeVar("N", int, float)

_ROUND_SECONDS = 0.1
_IDLE_SECONDS = 1.0
_LONGEST_BEAT_SECONDS = 2.0
_LONGEST_RECONCILE_SECONDS = 30.0


@dataclass(frozen=True)
class Settings:
    """``jobs`` at a time; caps in bytes and seconds for any job (0: none); how often the process
    of a job may end by itself without having got on; whether a user's server may be relied on that
    cannot be shown to sync every message."""

    jobs: int = 1
    memory: int = 0
    seconds: float = 0.0
    deaths: int = 3
    accept_unproved: bool = False


class Daemon:
    """The one daemon of ``workspace``; its jobs come over ``link`` from the server at ``nats``
    (None: the workspace's own). ``tell`` hears what a person may want to know.

    Raises ``LogError`` when the workspace's key cannot be used, or the server not be relied on.
    """

    def __init__(
        self,
        workspace: Workspace,
        nats: str | None,
        link: Link,
        settings: Settings,
        tell: Callable[[str], None],
    ) -> None:
        if nats is not None and not (settings.accept_unproved or is_proved(Endpoint.of_user(nats))):
            raise LogError(
                f"{Endpoint.of_user(nats).name}: nothing shows that this server syncs every "
                "message to disk, on which takeovers rely: set ESPER_NATS_MONITOR to its "
                "monitoring URL, or accept it with --accept-unproved"
            )
        self.holder = f"{socket.gethostname()}-{workspace.key().public.id.hex()[:8]}"
        self._workspace = workspace
        self._nats = nats
        self._link = link
        self._settings = settings
        self._tell = tell
        self._held: dict[str, Holding] = {}
        self._stops = 0
        self._lease = DEFAULT_LEASE
        self._beat_at = self._reconcile_at = 0.0
        self._away = False

    def stop(self) -> None:
        """Once: let the jobs stop at their next safe point, and go. Twice: kill them. Safe to be
        called by a signal's handler."""
        self._stops += 1

    def run(self) -> None:
        """Work until `stop` is called; raises ``LogError`` where the workspace has a daemon."""
        with self._alone():
            try:
                while not self._stops or self._held:
                    self._round()
                    if self._stops > 1 and self._away:
                        return
            finally:
                for holding in self._held.values():
                    if holding.process is not None:
                        holding.process.kill()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        directory = self._workspace.path / JOBS
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(directory / "daemon.lock") as lock:
                if not lock.acquire():
                    raise LogError(
                        f"a daemon is at work in the workspace {self._workspace.path} already: "
                        "give it more --jobs, or set ESPER_WORKSPACE to another one"
                    )
                yield
        except OSError as error:
            raise LogError(f"{directory} cannot be used: {error}") from error

    def _round(self) -> None:
        for holding in self._held.values():
            if self._stops:
                holding.stop("released", float("inf"))
            if self._stops > 1:
                holding.kill()
            holding.watch()
        try:
            self._speak()
        except LogError as error:
            self._link.lost()
            self._give_up_what_is_overdue()
            if not self._away:
                self._tell(f"the server is away: {error}")
            self._away = True
            time.sleep(_ROUND_SECONDS)
        else:
            if self._away:
                self._tell("the server is back")
            self._away = False

    def _speak(self) -> None:
        """All that the server has to be told and asked in one round."""
        now, self._lease = time.monotonic(), self._link.queue.lease
        if now >= self._beat_at:
            self._beat()
            self._beat_at = now + min(self._lease / 3, _LONGEST_BEAT_SECONDS)
        for holding in list(self._held.values()):
            if holding.verdict is not None:
                self._settle(holding)
        if self._stops:
            time.sleep(_ROUND_SECONDS)
            return
        if now >= self._reconcile_at:
            self._reconcile()
            self._reconcile_at = now + min(self._lease, _LONGEST_RECONCILE_SECONDS)
        if len(self._held) >= self._settings.jobs:
            time.sleep(_ROUND_SECONDS)
            return
        delivery = self._link.queue.take(_ROUND_SECONDS if self._held else _IDLE_SECONDS)
        if delivery is not None:
            self._weigh(delivery)

    def _give_up_what_is_overdue(self) -> None:
        """Stop what somebody else may have by now: its lease was not confirmed for that long.

        A run that only this workspace can go on with goes on, whatever the lease.
        """
        now = time.monotonic()
        for holding in self._held.values():
            if holding.order.ack == "jetstream" and now - holding.heard > self._lease:
                holding.stop("lost", LOST_GRACE_SECONDS)

    def _beat(self) -> None:
        """Keep the leases of the jobs that are held; find out which are lost or not wanted."""
        for holding in self._held.values():
            sent = time.monotonic()
            self._link.queue.beat(holding.delivery)
            holding.heard = sent
            told = None if holding.process is None else holding.process.progress()
            if told is not None:
                self._link.queue.tell(holding.job, msgspec.json.encode(told))
        jobs = self._link.state().jobs
        for holding in self._held.values():
            state = jobs.get(holding.job)
            if state is None or state.epoch != holding.order.epoch or not state.holder:
                holding.stop("lost", 0.0)
            elif state.state == "cancelled":
                holding.stop("cancelled")

    def _reconcile(self) -> None:
        """Jobs that wait, or whose holder may be gone, belong in the queue, which can be lost."""
        queued = self._link.queue.jobs()
        for job, state in self._link.state().jobs.items():
            if state.state in ("waiting", "leased") and job not in queued:
                self._link.queue.publish(job)
                self._tell(f"{job}: put into the queue again")

    def _weigh(self, delivery: Delivery) -> None:
        """Take the job that was handed out, or leave it to whom it belongs."""
        job, queue = delivery.job, self._link.queue
        if job in self._held:
            # The queue was lost and filled again: this message now stands for the lease.
            self._held[job].delivery = delivery
            return
        state = self._link.state().jobs.get(job)
        if state is None or state.state in ("ended", "parked", "cancelled"):
            queue.finish(delivery)
        elif state.state == "leased" and delivery.attempt == 1:
            # A message of which no lease has ended yet: the job's holder may be well.
            queue.put_back(delivery, self._lease)
        elif self._can_run(job, state):
            self._claim(delivery, state)
        else:
            queue.put_back(delivery, self._lease / 4)

    def _can_run(self, job: str, state: JobState) -> bool:
        """A run whose truth is a journal can be gone on with only where that lies."""
        first = state.epoch < 0 or state.submitted.ack == "jetstream"
        return first or self._directory(job).exists()

    def _claim(self, delivery: Delivery, state: JobState) -> None:
        job = delivery.job
        self._directory(job).mkdir(mode=0o700, exist_ok=True)
        decide = claim(self._link.reading, state, job, self.holder)
        written = [record.event for record in self._link.registry.update(decide)]
        last = written[-1] if written else None
        if isinstance(last, LeaseGranted):
            self._hold(delivery, state, last)
        elif last is None:
            self._link.queue.put_back(delivery, _ROUND_SECONDS)
        else:
            self._link.queue.finish(delivery)
            self._tell(f"{job}: parked, too many of its leases have expired")

    def _hold(self, delivery: Delivery, state: JobState, grant: LeaseGranted) -> None:
        job, settings = delivery.job, self._settings
        submitted = state.submitted
        why = f"lease {state.epoch} of {state.holder} expired" if state.holder else "it was waiting"
        order = Order(
            config=submitted.config,
            directory=submitted.directory,
            seed=submitted.seed,
            ack=submitted.ack,
            epoch=grant.epoch,
            holder=self.holder,
            log=grant.log,
            why=why,
            memory=_least(submitted.memory, settings.memory),
            workspace=str(self._workspace.path),
            nats=self._nats,
            accept_unproved=settings.accept_unproved,
        )
        limits = Limits(_least(submitted.seconds, settings.seconds), settings.deaths)
        holding = Holding(job, order, self._directory(job), delivery, limits, self._tell)
        self._held[job] = holding
        self._tell(f"{job}: taken, lease epoch {grant.epoch} ({why})")

    def _settle(self, holding: Holding) -> None:
        """Tell registry and queue what has become of a job, and let go of it."""
        verdict = holding.verdict
        if verdict is None:
            return
        event, queue, job = verdict.event, self._link.queue, holding.job
        if event is not None:
            decide = if_held(self._link.reading, job, holding.order.epoch, event)
            self._link.registry.update(decide)
            if verdict.over:
                queue.finish(holding.delivery)
            else:
                queue.put_back(holding.delivery)
        del self._held[job]
        self._tell(f"{job}: {verdict.words}")

    def _directory(self, job: str) -> Path:
        return job_directory(self._workspace, job)


def job_directory(workspace: Workspace, job: str) -> Path:
    """Where ``job`` has its run, its progress and what its process printed."""
    return workspace.path / JOBS / job


def _least(one: N, other: N) -> N:
    """The smaller of two limits, of which 0 is none."""
    return min(one, other) if one and other else one or other
