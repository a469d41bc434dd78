"""A run as its log tells it: what was decided, applied and measured at which step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from esper.blueprints.ir import Blueprint, from_bytes
from esper_events.errors import ChainError
from esper_events.events import (
    BlueprintRegistered,
    CheckpointWritten,
    Event,
    HostRolledBack,
    PassesSeparated,
    Record,
    RunEnded,
    RunStarted,
    SeedFolded,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
    WeightsRecorded,
)
from esper_events.keys import PublicKey
from esper_events.reader import LogReader


class RerunError(Exception):
    """A log that cannot be trained again, or not under these conditions."""


@dataclass
class LoggedRun:
    """The parts of a log that a re-run needs; ``at`` holds the events of each step in order."""

    started: RunStarted
    blueprints: dict[str, Blueprint] = field(default_factory=dict)
    decided: dict[int, TransitionDecided] = field(default_factory=dict)
    at: dict[int, list[Event]] = field(default_factory=lambda: defaultdict(list))
    ended: RunEnded | None = None

    @property
    def steps(self) -> int:
        """The last step that the log tells of."""
        return self.ended.step if self.ended is not None else max(self.at, default=0)

    @property
    def back_to(self) -> frozenset[int]:
        """The steps whose state the host went back to later on."""
        events = (event for told in self.at.values() for event in told)
        return frozenset(e.to_step for e in events if isinstance(e, HostRolledBack))

    @property
    def folded(self) -> frozenset[int]:
        """The fossils that became part of their modules' weights."""
        events = (event for told in self.at.values() for event in told)
        return frozenset(event.seed for event in events if isinstance(event, SeedFolded))


def read_run(path: Path, trusted: PublicKey | None = None) -> LoggedRun:
    """Read and verify the log of a run directory or an exported file.

    Raises:
        ChainError: the log is damaged; the message says where.
        RerunError: there is no run in it.
    """
    try:
        return from_records(LogReader(path, trusted).records())
    except OSError as error:
        raise RerunError(
            f"{path} holds no run that can be read: {error.strerror or error}; wanted a run "
            "directory or a file made by esper export-log"
        ) from error


def from_records(records: Iterable[Record]) -> LoggedRun:
    """The run that ``records`` tell, from the first on."""
    run: LoggedRun | None = None
    for record in records:
        event = record.event
        if isinstance(event, RunStarted):
            run = LoggedRun(event)
        if run is None:
            raise RerunError("the log does not begin with a run")
        _add(run, event)
    if run is None:
        raise RerunError("the log is empty: there is nothing to train again")
    return run


def _add(run: LoggedRun, event: Event) -> None:
    match event:
        case BlueprintRegistered(blueprint=number, body=body):
            run.blueprints[number] = from_bytes(body)
        case TransitionDecided(decision=decision, step=step):
            run.decided[decision] = event
            run.at[step].append(event)
        case TransitionApplied(step=step) | TransitionLapsed(step=step):
            run.at[step].append(event)
        case WeightsRecorded(step=step) | CheckpointWritten(step=step) | SeedFolded(step=step):
            run.at[step].append(event)
        case HostRolledBack(step=step):
            run.at[step].append(event)
        case PassesSeparated(step=step, purpose="training"):
            run.at[step].append(event)
        case RunEnded():
            run.ended = event


__all__ = ["ChainError", "LoggedRun", "RerunError", "from_records", "read_run"]
