"""A spoilt host goes back to its last checkpoint, while the run goes on.

This is for a host that is spoilt by itself: what a graft spoils, its fork or its snapshot brings
back. It is decided, acknowledged and then done, like every change of a host.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esper.kasmina.digest import model_digest
from esper.tolaria.breaker import Ticket
from esper.tolaria.catch_up import CatchUpError, CatchUpLog
from esper.tolaria.checkpoint.file import CheckpointError
from esper.tolaria.checkpoint.keeper import Checkpoints, Kept
from esper.tolaria.context import Context
from esper_events.events import HostRolledBack, RollbackDecided

_logger = logging.getLogger("esper.tolaria")


class SpoiltError(Exception):
    """The host is spoilt, and there is no checkpoint left to go back to."""


@dataclass(frozen=True)
class _Decided:
    kept: Kept
    ticket: Ticket
    deadline: float


class Rollbacks:
    """Those of one run. ``settings.rollbacks`` times at most it goes back to one checkpoint."""

    def __init__(self, context: Context, checkpoints: Checkpoints) -> None:
        self._context = context
        self._checkpoints = checkpoints
        self._times = Counter[int]()
        self._open: _Decided | None = None
        self._back: tuple[int, int] | None = None
        self.none_left = False
        """Whether there was nothing to go back to when the host was last looked at."""

    def __bool__(self) -> bool:
        """Whether one is decided and waits for the log."""
        return self._open is not None

    @property
    def on_probation(self) -> bool:
        """Whether the host has gone back and has not been seen to be well since."""
        return self._back is not None

    def judged(self, step: int, *, spoilt: bool) -> None:
        """Hear what an observation at ``step`` has found."""
        self.none_left &= spoilt
        if self._back is None:
            return
        back_at, to_step = self._back
        if spoilt and step == back_at:  # That checkpoint is no better.
            self._times[to_step] = self._context.settings.rollbacks
        elif not spoilt and step > back_at:
            self._back = None

    def snapshot(self) -> list[tuple[int, int]]:
        """What there is to remember: how often the run went back to which step."""
        return list(self._times.items())

    def restore(self, kept: list[tuple[int, int]]) -> None:
        """Go on from a :meth:`snapshot`."""
        self._times.update(dict(kept))

    def decide(self, step: int, reason: str, seeds: Mapping[str, Any]) -> None:
        """Decide to go back to the newest checkpoint that is left; ``seeds`` is what there is to
        remember of the seeds now: the host must have had the same fossils then.

        Where there never was one the host goes on as it is.

        Raises:
            SpoiltError: none is left.
        """
        found = self._told() if self._following else self._newest(reason, seeds)
        if found is None:
            self.none_left = True
            _logger.warning("step %d: %s; there is no checkpoint to go back to", step, reason)
            return
        kept, file = found
        self._times[kept.step] += 1
        decided = RollbackDecided(
            time=time.time(), step=step, to_step=kept.step, file=file, reason=reason
        )
        deadline = time.monotonic() + self._context.settings.ack_timeout
        self._open = _Decided(kept, self._context.log.append(decided), deadline)

    def settle(self, step: int, *, wait: bool = False) -> bool:
        """Go back where the log has acknowledged it; whether that was done.

        ``wait`` gives the log its time-out to do so, as ``sync_decisions`` does.
        """
        decided = self._open
        if decided is None:
            return False
        wait = wait or self._context.settings.sync_decisions
        if wait and not decided.ticket.acknowledged:
            decided.ticket.wait(max(0.0, decided.deadline - time.monotonic()))
        if not decided.ticket.acknowledged:
            return False
        self._open = None
        self._checkpoints.host.put_back(decided.kept.state)
        to_step, weights = decided.kept.step, model_digest(self._context.lattice.model)
        self._back = step, to_step
        self._context.log.append(
            HostRolledBack(time=time.time(), step=step, to_step=to_step, weights=weights)
        )
        _logger.warning("step %d: the host is back at its state of step %d", step, to_step)
        return True

    @property
    def _following(self) -> bool:
        """Whether this run is resumed, and does what its log tells."""
        log = self._context.log
        return isinstance(log, CatchUpLog) and log.behind > 0

    def _told(self) -> tuple[Kept, str] | None:
        """The checkpoint that the log of before tells of here, and its file."""
        log = self._context.log
        told = log.ahead if isinstance(log, CatchUpLog) else None
        if not isinstance(told, RollbackDecided):
            return None
        try:
            return self._checkpoints.at(told.to_step, told.file), told.file
        except CheckpointError as error:
            raise CatchUpError(
                f"the run went back to the checkpoint of step {told.to_step} here, and {error}"
            ) from error

    def _newest(self, reason: str, seeds: Mapping[str, Any]) -> tuple[Kept, str] | None:
        """The newest that fits and has not been gone back to too often."""
        spent = []
        for written, kept in self._checkpoints.regular():
            if self._fits(kept, seeds):
                if self._times[kept.step] < self._context.settings.rollbacks:
                    return kept, written.file
                spent.append(f"{self._times[kept.step]} times to step {kept.step}")
        if spent:
            raise SpoiltError(
                f"{reason}, and no checkpoint is left to go back to ({', '.join(spent)}): look at "
                "the learning rate and at the data there; rollbacks = 0 lets a run go on so"
            )
        return None

    def _fits(self, kept: Kept, seeds: Mapping[str, Any]) -> bool:
        if _grown(kept.seeds["seeds"]) != _grown(seeds):
            return False
        try:
            self._checkpoints.host.require_fit(kept.state)
        except CheckpointError:
            return False
        return True


def _grown(seeds: Mapping[str, Any]) -> tuple[list[int], dict[str, str]]:
    """The fossils, and those folded with their digests."""
    folded = {str(number): digest for number, digest in seeds["folded"].items()}
    return [entry["seed"] for entry in seeds["fossils"]], folded
