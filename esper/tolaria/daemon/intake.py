"""Taking a job that the queue has handed out, or leaving it to whom it belongs."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from esper.log.durability import is_proved
from esper.log.endpoint import Endpoint
from esper.log.errors import LogError, StoreUnavailableError
from esper.log.queue import Delivery
from esper.log.workspace import Workspace
from esper.projections.registry import JobState
from esper.tolaria.daemon.holding import Holding, Limits
from esper.tolaria.daemon.link import Link
from esper.tolaria.daemon.orders import RUN, Order
from esper.tolaria.daemon.rulings import claim
from esper_events.registry import LeaseGranted

JOBS = "jobs"
"""The directory of a workspace in which each job has one."""

_AGAIN_SECONDS = 0.1

N = TypeVar("N", int, float)


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


class Intake:
    """Weighs what the queue hands to the daemon of ``workspace``, against the registry.

    ``holder`` is that daemon's name in leases; it stays when the daemon is started again. Raises
    ``LogError`` when the workspace's key cannot be used, or the server not be relied on.
    """

    def __init__(
        self,
        workspace: Workspace,
        nats: str | None,
        link: Link,
        settings: Settings,
        tell: Callable[[str], None],
    ) -> None:
        if nats is not None and not settings.accept_unproved:
            _require_proof(Endpoint.of_user(nats))
        self.holder = f"{socket.gethostname()}-{workspace.key().public.id.hex()[:8]}"
        self._workspace = workspace
        self._nats = nats
        self._link = link
        self._settings = settings
        self._tell = tell

    def weigh(self, delivery: Delivery) -> Holding | None:
        """The job, granted to this daemon; None where it is not to be had."""
        job, queue = delivery.job, self._link.queue
        state = self._link.state().jobs.get(job)
        if state is None or state.state in ("ended", "parked", "cancelled"):
            queue.finish(delivery)
        elif state.state == "leased" and delivery.attempt == 1:
            # A message of which no lease has ended yet: the job's holder may be well.
            queue.put_back(delivery, queue.lease)
        elif not self._can_run(job, state):
            queue.put_back(delivery, queue.lease / 4)
        else:
            return self._claim(delivery, state)
        return None

    def _can_run(self, job: str, state: JobState) -> bool:
        """A run whose truth is a journal can be gone on with only where that lies."""
        if state.epoch < 0 or state.submitted.ack == "jetstream":
            return True
        return state.holder == self.holder or (self._directory(job) / RUN).exists()

    def _claim(self, delivery: Delivery, state: JobState) -> Holding | None:
        job, queue = delivery.job, self._link.queue
        try:
            written = self._link.update(claim(self._link.reading, state, job, self.holder))
        except StoreUnavailableError:
            raise
        except LogError as error:
            queue.put_back(delivery, queue.lease)  # Others may be let in.
            raise LogError(f"{job} cannot be taken: {error}") from error
        last = written[-1] if written else None
        if isinstance(last, LeaseGranted):
            return self._holding(delivery, state, last)
        if last is None:
            queue.put_back(delivery, _AGAIN_SECONDS)
        else:
            queue.finish(delivery)
            self._tell(f"{job}: parked, too many of its leases have expired")
        return None

    def _holding(self, delivery: Delivery, state: JobState, grant: LeaseGranted) -> Holding:
        job, submitted, settings = delivery.job, state.submitted, self._settings
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
        self._tell(f"{job}: taken, lease epoch {grant.epoch} ({why})")
        return Holding(job, order, self._directory(job), delivery, limits, self._tell)

    def _directory(self, job: str) -> Path:
        return job_directory(self._workspace, job)


def job_directory(workspace: Workspace, job: str) -> Path:
    """Where ``job`` has its run, its progress and what its process printed."""
    return workspace.path / JOBS / job


def _require_proof(server: Endpoint) -> None:
    if not is_proved(server):
        raise LogError(
            f"{server.name}: nothing shows that this server syncs every message to disk, on which "
            "takeovers rely: set ESPER_NATS_MONITOR to its monitoring URL, or accept it with "
            "--accept-unproved"
        )


def _least(one: N, other: N) -> N:
    """The smaller of two limits, of which 0 is none."""
    return min(one, other) if one and other else one or other
