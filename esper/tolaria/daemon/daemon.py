"""The daemon: takes jobs, keeps their leases alive, sees their processes through to an end.

One thread goes round: processes are looked after without the server, then the server is told and
asked. What cannot be said now, because the server is away, is said when it is back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from esper.log.errors import LogError
from esper.log.locks import FileLock
from esper.log.queue import DEFAULT_LEASE
from esper.log.workspace import Workspace
from esper.tolaria.daemon.holding import LOST_GRACE_SECONDS, Holding
from esper.tolaria.daemon.intake import JOBS, Intake, Settings
from esper.tolaria.daemon.link import Link
from esper.tolaria.daemon.rulings import if_held

_ROUND_SECONDS = 0.1
_IDLE_SECONDS = 1.0
_LONGEST_BEAT_SECONDS = 2.0
_LONGEST_RECONCILE_SECONDS = 30.0


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
        self._intake = Intake(workspace, nats, link, settings, tell)
        self.holder = self._intake.holder
        self._workspace = workspace
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
                    if self._stops and self._away and not self._training():
                        return  # Nobody can be told; the leases will end by themselves.
            finally:
                for holding in self._held.values():
                    if holding.process is not None:
                        holding.process.kill()

    def _training(self) -> bool:
        return any(holding.process is not None for holding in self._held.values())

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
                self._tell(f"waiting for the server: {error}")
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
        if delivery is not None and delivery.job in self._held:
            # The queue was lost and filled again: this message now stands for the lease.
            self._held[delivery.job].delivery = delivery
        elif delivery is not None:
            taken = self._intake.weigh(delivery)
            if taken is not None:
                self._held[delivery.job] = taken

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
            if holding.lost:
                continue  # Its message is another's by now, and needs no sign of life from here.
            sent = time.monotonic()
            self._link.queue.beat(holding.delivery)
            holding.heard = sent
            self._tell_progress(holding)
        jobs = self._link.state().jobs
        for holding in self._held.values():
            state = jobs.get(holding.job)
            if state is None or state.epoch != holding.order.epoch or not state.holder:
                holding.stop("lost", 0.0)
            elif state.state == "cancelled":
                holding.stop("cancelled")

    def _tell_progress(self, holding: Holding) -> None:
        told = holding.progress()
        if told is not None:
            self._link.queue.tell(holding.job, msgspec.json.encode(told))

    def _reconcile(self) -> None:
        """Jobs that wait, or whose holder may be gone, belong in the queue, which can be lost."""
        queued = self._link.queue.jobs()
        for job, state in self._link.state().jobs.items():
            if state.state in ("waiting", "leased") and job not in queued:
                self._link.queue.publish(job)
                self._tell(f"{job}: put into the queue again")

    def _settle(self, holding: Holding) -> None:
        """Tell registry and queue what has become of a job, and let go of it."""
        verdict = holding.verdict
        if verdict is None:
            return
        event, queue, job = verdict.event, self._link.queue, holding.job
        if event is not None:
            decide = if_held(self._link.reading, job, holding.order.epoch, event)
            self._link.update(decide)
            self._tell_progress(holding)
            if verdict.over:
                queue.finish(holding.delivery)
            else:
                queue.put_back(holding.delivery, self._lease if verdict.rests else 0.0)
        del self._held[job]
        self._tell(f"{job}: {verdict.words}")
