"""The process that trains one job, for a daemon without which it does not live.

    python -m esper.tolaria.daemon.child DIRECTORY DAEMON_PID < ORDER

SIGTERM: stop at the next safe point, so that the run can go on elsewhere. SIGINT: end it there.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from esper.tolaria.daemon.orders import REPORT, RUN, Order, Report, put
from esper.tolaria.daemon.watcher import ProgressFile

if TYPE_CHECKING:
    from types import FrameType

    from esper.tolaria.growth import Growth

_PR_SET_PDEATHSIG = 1


def main(directory: Path, daemon: int) -> None:
    """Train as the order on standard input says, and report."""
    _die_with(daemon)
    stops = Stops()
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    if order.memory:
        # Of what is really written to: address space, which torch and CUDA reserve freely, is not
        # counted, nor are files that are mapped.
        resource.setrlimit(resource.RLIMIT_DATA, (order.memory, order.memory))
    logging.basicConfig(format="%(levelname)s: %(message)s")
    put(directory / REPORT, _train(directory, order, stops))


def _die_with(daemon: int) -> None:
    """Have the kernel kill this process when the daemon is gone, however it went."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != daemon:
        raise SystemExit("the daemon is gone")


class Stops:
    """Remembers which signal came until training is at a safe point."""

    def __init__(self) -> None:
        self._number: int | None = None
        signal.signal(signal.SIGTERM, self._hear)
        signal.signal(signal.SIGINT, self._hear)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        self._number = number

    def obey(self, growth: Growth) -> None:
        """Raise ``Stopped`` with the run left, or ended, if a signal has come."""
        if self._number == signal.SIGTERM:
            growth.leave()
            raise Stopped(Report(end="left"))
        if self._number == signal.SIGINT:
            growth.close("interrupted", "cancelled")
            raise Stopped(Report(end="ended", outcome="interrupted", reason="cancelled"))


class Stopped(Exception):
    """The run stopped at a safe point, as it was told to."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.end)
        self.report = report


def _train(directory: Path, order: Order, stops: Stops) -> Report:
    """Train, and say how that ended; nothing escapes but what the interpreter itself raises."""
    try:
        return _grow(directory, order, stops)
    except Stopped as stopped:
        return stopped.report
    except Exception as error:  # noqa: BLE001 - whatever it is, the daemon is told
        traceback.print_exc()
        return _failure(directory, error)


def _grow(directory: Path, order: Order, stops: Stops) -> Report:
    """What the order says, from the import of torch to the end of the run."""
    from esper.tolaria.config import LogSettings, parse

    config = msgspec.structs.replace(
        parse(order.config, Path(order.directory)),
        log=LogSettings(ack=order.ack, nats=order.nats, workspace=order.workspace),
    )
    from esper.log.takeover import Lease
    from esper.tolaria import trainer

    grown = trainer.grow(
        config,
        run_dir=directory / RUN,
        nats=order.nats,
        seed=order.seed,
        observer=ProgressFile(directory),
        lease=Lease(order.epoch, order.holder, order.log, order.why),
        accept_unproved=order.accept_unproved,
        after_step=stops.obey,
    )
    if grown.log_failure:
        return Report(end="failed", reason=f"the log failed: {grown.log_failure}")
    if order.ack == "jetstream" and grown.behind:
        return Report(end="away", reason=f"the server lacks the last {grown.behind} segments")
    return Report(end="ended")


def _failure(directory: Path, error: Exception) -> Report:
    """What an exception means for the job."""
    from esper.tolaria.config import ConfigError

    if isinstance(error, ConfigError):
        return Report(end="refused", reason=str(error))
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if _no_memory(error):
        return Report(end="refused", reason=f"it needs more memory than it may use ({reason})")
    from esper.kasmina.errors import KasminaError
    from esper.log.errors import (
        FencedError,
        NoRoomError,
        RunEndedError,
        StoreUnavailableError,
    )
    from esper.tolaria.catch_up import CatchUpError
    from esper.tolaria.checkpoint.file import CheckpointError

    match error:
        case FencedError():
            return Report(end="fenced", reason=str(error))
        case RunEndedError() if error.ended is not None:
            ended = error.ended
            return Report(end="ended", outcome=ended.outcome, reason=ended.reason)
        case NoRoomError():
            return Report(end="left", reason=str(error))
        case StoreUnavailableError():
            return Report(end="away", reason=reason)
        case KasminaError() | CatchUpError() | CheckpointError():
            return Report(end="refused", reason=reason)
    return Report(end="failed", reason=reason)


def _no_memory(error: Exception) -> bool:
    """Whether memory could not be had; torch has no exception of its own for that."""
    text = str(error)
    return isinstance(error, MemoryError) or "allocate memory" in text or "bad_alloc" in text


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
