"""Where a run's log goes, and what a run tells of itself there from beginning to end."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
from torch import nn

from esper import __version__
from esper.blueprints.ir import Blueprint
from esper.kasmina.digest import model_digest
from esper.kasmina.lattice import Lattice, describe_slots
from esper.log.event_log import EventLog, LogSummary
from esper.log.memory import MemoryStore
from esper.projections.lattice import LatticeState, ProjectionError, first_difference
from esper.tolaria.catch_up import CatchUpLog
from esper.tolaria.inputs import open_log
from esper.tolaria.logged import LoggedRun
from esper.tolaria.platform import describe_platform
from esper.tolaria.settings import GrowthSettings
from esper_events.events import (
    BlueprintRegistered,
    Event,
    Figures,
    LatticeDeclared,
    RunEnded,
    RunStarted,
)
from esper_events.keys import SigningKey

Outcome = Literal["completed", "interrupted", "failed"]
_logger = logging.getLogger("esper.tolaria")


@dataclass(frozen=True)
class LogPlace:
    """The arguments of ``Growth`` that say where its log goes, and whether it goes on with one."""

    run_dir: Path | None
    workspace: str | Path | None
    nats: str | None
    ack: Literal["journal", "jetstream"]
    resume: bool
    log: EventLog | None

    def check_checkpoints(self, every: int) -> None:
        """Raise ``ValueError`` where checkpoints have nowhere to go, or no steps to come at."""
        if every < 1:
            raise ValueError(f"got checkpoint_every={every}, wanted a number of steps from 1 on")
        if self.log is not None and self.run_dir is None:
            raise ValueError("checkpoint_every needs run_dir: the directory of the checkpoints")

    def open(self, logged: LoggedRun | None) -> tuple[EventLog | CatchUpLog, Path | None]:
        """The log, and the directory of the run where it has one.

        A re-run of ``logged`` writes to memory what nobody reads.

        Raises:
            LogError: it cannot be opened.
        """
        log, directory = self.log, self.run_dir
        if logged is not None:
            log = EventLog(MemoryStore(), SigningKey.generate(), logged.started.run)
        elif log is None:
            log, directory = open_log(directory, self.workspace, self.nats, self.ack, self.resume)
        return CatchUpLog(log) if self.resume else log, directory


def run_started(
    log: EventLog | CatchUpLog,
    settings: GrowthSettings,
    host_weights: str,
    seed: int,
    config: str | None,
    facts: Mapping[str, str],
) -> RunStarted:
    """The first event; the settings stand for the config where there is none."""
    told = log.credentials
    return RunStarted(
        time=time.time(),
        run=log.log_id,
        trainer_key=told.trainer_key,
        host_weights=host_weights,
        config=msgspec.json.encode(settings).decode() if config is None else config,
        seed=seed,
        version=__version__,
        platform={**describe_platform(), **facts},
        certificate=told.certificate,
        next_key=told.next_key,
    )


def declarations(lattice: Lattice, library: Sequence[Blueprint]) -> list[Event]:
    """Where something could grow, and from which blueprints."""
    now = time.time()
    slots, left_out = describe_slots(lattice.map), lattice.map.left_out
    return [
        LatticeDeclared(time=now, slots=slots, left_out=left_out),
        *(
            BlueprintRegistered(time=now, blueprint=b.id, name=b.name, body=b.canonical())
            for b in library
        ),
    ]


def require_same(live: LatticeState, folded: LatticeState) -> None:
    """Raise ``ProjectionError`` unless the log, ``folded``, tells the state of the lattice."""
    if live.digest() != folded.digest():
        raise ProjectionError(
            f"the running lattice ({live.digest()[:12]}) is not what its log tells "
            f"({folded.digest()[:12]}): {first_difference(live, folded)}; please report this"
        )


def run_ended(
    step: int,
    outcome: Outcome,
    reason: str,
    model: nn.Module,
    lattice: LatticeState,
    figures: Figures,
) -> RunEnded:
    """The last event."""
    return RunEnded(
        time=time.time(),
        step=step,
        outcome=outcome,
        reason=reason,
        final_weights=model_digest(model),
        lattice=lattice.digest(),
        figures=figures,
    )


def warn_of_failing(log: EventLog | CatchUpLog, step: int) -> None:
    """Say that the ``log`` has failed by ``step``: growth is over, as nothing can be decided."""
    _logger.warning(
        "step %d: the log of run %s has failed, nothing grows any more: %s",
        step,
        log.log_id,
        log.failure,
    )


def warn_of_failure(log: EventLog | CatchUpLog, summary: LogSummary) -> None:
    """Say that the closed ``log`` holds less than it was told, where it does."""
    if log.failure is not None:
        _logger.warning(
            "the log of run %s failed, so its record ends after %d events: %s",
            log.log_id,
            summary.events,
            log.failure,
        )
