"""Opening the log of a new run, or of one that is to go on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from esper.log.errors import (
    FencedError,
    JournalError,
    LogError,
    RunEndedError,
    StoreUnavailableError,
)
from esper.log.event_log import EventLog
from esper.log.journal import JournalStore
from esper.log.opening import (
    TRAINER_KEY,
    RunPlace,
    first_segment,
    holds_a_run,
    logged_start,
)
from esper.log.quarantine import drop_suffix
from esper.log.repair import repair_replica
from esper.log.settling import Acknowledgement
from esper.log.stream import check_log_id
from esper.log.succession import succeed
from esper.log.workspace import Workspace
from esper_events.errors import ChainError
from esper_events.events import RunEnded
from esper_events.framing import JOURNAL
from esper_events.reader import read_checkpoint

__all__ = ["TRAINER_KEY", "logged_start", "open_run_log", "repair_replica", "resume_run_log"]

_ANSWER_SECONDS = 30.0


def open_run_log(
    run_dir: Path,
    *,
    log_id: str,
    workspace: Workspace,
    nats: str | None = None,
    ack: Acknowledgement = "journal",
    accept_unproved: bool = False,
) -> EventLog:
    """The log of a new run: journal in ``run_dir``, copy on a server.

    The server is the workspace's own, or the user's at the URL ``nats``. A user's server that
    cannot be shown to sync every message is warned of; with ``ack="jetstream"`` it is refused
    unless ``accept_unproved``.

    Raises ``LogError`` when ``run_dir`` holds a journal already or cannot be written, when the log
    id, the URL or the workspace's key is unusable, or when there is no nats-server to start.
    """
    check_log_id(log_id)
    if holds_a_run(run_dir):
        raise LogError(
            f"{run_dir} already holds the journal of a run; choose another run directory"
        )
    return RunPlace(run_dir, log_id, workspace, nats, ack, accept_unproved).open()


def resume_run_log(
    run_dir: Path,
    *,
    workspace: Workspace,
    nats: str | None = None,
    ack: Acknowledgement = "journal",
    accept_unproved: bool = False,
) -> EventLog:
    """The log of a run that was killed, opened to be continued at its longest valid prefix.

    Raises ``RunEndedError`` when the run has ended, ``JournalError`` when there is nothing to
    continue, when the journal is damaged, holds less than its checkpoint commits to or was written
    under a key that cannot be exchanged for the workspace's, ``ConflictError`` while another
    process writes it. With ``ack="jetstream"``: ``FencedError`` when another has the run, and what
    is no part of it has been set aside in its quarantine; ``StoreUnavailableError`` when the server
    lacks what the journal holds.
    """
    if not holds_a_run(run_dir):
        raise JournalError(f"{run_dir} holds no run that could be resumed")
    log_id = first_segment(run_dir).log
    place = RunPlace(run_dir, log_id, workspace, nats, ack, accept_unproved)
    log = place.open(partial(succeed, workspace))
    try:
        _await_acknowledgement(log)
        _check_resumable(run_dir, log)
    except FencedError as error:
        log.close()
        raise _fenced(run_dir, error) from error
    except BaseException:
        log.close()
        raise
    return log


def _fenced(run_dir: Path, error: FencedError) -> FencedError:
    """What to tell, when the end of the journal that is no part of the run has been set aside."""
    journal = JournalStore(run_dir / JOURNAL.parent)
    try:
        aside = drop_suffix(run_dir, journal, error.fork)
    finally:
        journal.close()
    told = f"{error}; it lies in {aside} now" if aside is not None else str(error)
    return FencedError(told, error.epoch, error.holder, error.index, error.fork)


def _await_acknowledgement(log: EventLog) -> None:
    """What a killed run wrote counts when it is acknowledged, as what it writes from now on."""
    if not log.flush(_ANSWER_SECONDS):
        if log.failure is not None:
            raise log.failure
        reason = log.replica_state.reason or "no answer"
        raise StoreUnavailableError(
            "the server has not acknowledged what the journal holds, so the run cannot go on with "
            f'ack = "jetstream": {reason}'
        )


def _check_resumable(run_dir: Path, log: EventLog) -> None:
    records = log.records()
    if records and isinstance(records[-1].event, RunEnded):
        ended = records[-1].event
        raise RunEndedError(
            f"the run in {run_dir} has ended ({ended.outcome}): there is nothing to resume", ended
        )
    try:
        signed = read_checkpoint(run_dir)
    except ChainError as error:
        raise JournalError(str(error)) from error
    if signed is not None and signed.checkpoint.size > len(records):
        raise JournalError(
            f"the checkpoint commits to {signed.checkpoint.size} events and the journal "
            f"holds {len(records)}: acknowledged events are missing, so the run cannot go on"
        )
