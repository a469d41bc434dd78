"""A job that this daemon holds: its process, its limits, and what is to become of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from esper.log.errors import LogError
from esper.log.queue import Delivery
from esper.tolaria.daemon.orders import PROGRESS, Order, Progress, Report, got
from esper.tolaria.daemon.process import TrainerProcess
from esper_events.registry import JobEnded, JobParked, JobReleased, RegistryEvent

GRACE_SECONDS = 30.0
"""How long a process that was told to stop may take to come to a safe point and to write a
checkpoint."""
LOST_GRACE_SECONDS = 2.0
"""The same, where somebody else may have the job by now."""

_RETRY_SECONDS = 1.0
_REASON = 1000
"""Characters of a reason that the registry keeps."""

Stop = Literal["released", "cancelled", "overdue", "lost"]


@dataclass(frozen=True)
class Verdict:
    """What the registry is to be told (None: nothing, somebody else has the job), whether the job
    needs nobody any more, the same in words, and whether it is to rest before it is handed out
    again."""

    event: RegistryEvent | None
    over: bool
    words: str
    rests: bool = False


@dataclass(frozen=True)
class Limits:
    """``seconds`` under one lease (0: no limit), and how often in a row the process may end by
    itself without having got on."""

    seconds: float
    deaths: int


class Holding:
    """One job under one lease, from its grant until there is a ``verdict``.

    ``heard`` is when the queue last confirmed the lease, by the monotonic clock; ``tell`` hears
    what a person may want to know.
    """

    def __init__(
        self,
        job: str,
        order: Order,
        directory: Path,
        delivery: Delivery,
        limits: Limits,
        tell: Callable[[str], None],
    ) -> None:
        self.job = job
        self.order = order
        self.directory = directory
        self.delivery = delivery
        self.heard = self._begun = time.monotonic()
        self.verdict: Verdict | None = None
        self.process: TrainerProcess | None = None
        self._limits = limits
        self._tell = tell
        self._deaths = 0
        self._furthest = -1
        self._start_at = 0.0
        self._stop: Stop | None = None
        self._kill_at = float("inf")

    @property
    def lost(self) -> bool:
        """Whether somebody else has the job, or may have it."""
        return self._stop == "lost"

    def stop(self, why: Stop, grace: float = GRACE_SECONDS) -> None:
        """Have the process stop at the next safe point, or be killed after ``grace`` seconds.

        Of several reasons the first counts, but for the loss of the lease, which always does.
        """
        if self._stop in (why, "lost") or (self._stop is not None and why != "lost"):
            return
        self._stop = why
        self._kill_at = min(self._kill_at, time.monotonic() + grace)
        if self.process is None:
            return
        if why == "cancelled":
            self.process.end()
        else:
            self.process.leave()

    def kill(self) -> None:
        """Have the process killed with the next look at it."""
        self._kill_at = 0.0

    def watch(self) -> None:
        """Start the process, hold it to its limits, judge how it ended: without waiting for it."""
        now = time.monotonic()
        if self.verdict is not None:
            return
        if self.process is None:
            if self._stop is not None:
                self._judge(Report(end="left"))
            elif now >= self._start_at:
                self._start()
        elif not self.process.running:
            self._note_progress()
            ended, self.process = self.process, None
            self._judge(ended.report())
        elif now >= self._kill_at:
            self.process.kill()
        elif 0 < self._limits.seconds < now - self._begun:
            self.stop("overdue")

    def _start(self) -> None:
        try:
            self.process = TrainerProcess(self.directory, self.order)
        except LogError as error:
            self._judge(Report(end="left", reason=str(error)))

    def progress(self) -> Progress | None:
        """How far the job says that it has come."""
        return got(self.directory / PROGRESS, Progress)

    def _note_progress(self) -> None:
        """A death behind the furthest step so far is the first of its kind."""
        told = self.progress()
        if told is not None and told.step > self._furthest:
            self._furthest, self._deaths = told.step, 0

    def _judge(self, report: Report) -> None:
        """What follows from the end of the process."""
        if self.lost or report.end == "fenced":
            self.verdict = Verdict(None, False, "somebody else has it")
        elif report.end == "ended":
            self._end(report)
        elif self._stop == "cancelled":
            self._end(Report(end="ended", outcome="interrupted", reason="cancelled"))
        elif self._stop == "overdue":
            self._park(f"it ran for longer than its limit of {self._limits.seconds:g} s")
        elif report.end == "refused":
            self._park(report.reason)
        elif self._stop == "released":
            self._release("the daemon stops")
        elif report.end == "left":
            self._release(report.reason, rests=True)
        else:
            self._retry(report.reason, to_blame=report.end == "failed")

    def _end(self, report: Report) -> None:
        event = JobEnded(
            time=time.time(),
            job=self.job,
            epoch=self.order.epoch,
            outcome=report.outcome,
            reason=report.reason,
            log=self.order.log,
        )
        told = f": {report.reason}" if report.reason else ""
        self.verdict = Verdict(event, True, f"{report.outcome}{told}")

    def _park(self, reason: str) -> None:
        event = JobParked(
            time=time.time(), job=self.job, epoch=self.order.epoch, reason=reason[:_REASON]
        )
        self.verdict = Verdict(event, True, f"parked: {reason}")

    def _release(self, reason: str, *, rests: bool = False) -> None:
        event = JobReleased(time=time.time(), job=self.job, epoch=self.order.epoch, reason=reason)
        self.verdict = Verdict(event, False, f"released: {reason}", rests)

    def _retry(self, reason: str, *, to_blame: bool) -> None:
        """Start again in a while; give the job up where it is ``to_blame`` too often."""
        self._deaths += to_blame
        if self._deaths >= self._limits.deaths:
            self._park(f"{reason} ({self._deaths} times without getting on)")
            return
        self._start_at = time.monotonic() + _RETRY_SECONDS
        self._tell(f"{self.job}: {reason}; its process is started again")
