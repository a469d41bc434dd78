"""Opening the log of a new run, or of one that is to go on."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from esper.log.durability import is_proved
from esper.log.endpoint import Endpoint
from esper.log.errors import JournalError, LogError, RunEndedError, StoreUnavailableError
from esper.log.event_log import EventLog
from esper.log.journal import JournalStore
from esper.log.repair import repair_replica
from esper.log.settling import Acknowledgement
from esper.log.sources import source_for
from esper.log.stream import check_log_id
from esper.log.workspace import Workspace
from esper.log.writer import SegmentWriter
from esper_events.certificate import Role, certify
from esper_events.codec import decode_event, encode_event
from esper_events.errors import ChainError, CodecError, SegmentError, cause
from esper_events.events import KeyCertified, RunEnded, RunStarted
from esper_events.framing import JOURNAL, read_frames
from esper_events.keys import PublicKey, SigningKey
from esper_events.reader import LogReader, open_journal, read_checkpoint
from esper_events.segment import Segment, open_segment

__all__ = ["TRAINER_KEY", "logged_start", "open_run_log", "repair_replica", "resume_run_log"]

_logger = logging.getLogger("esper.log")

_ANSWER_SECONDS = 30.0

TRAINER_KEY = "trainer.pub"
"""The public key of the run's writer, in its directory, to be compared or pinned."""


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
    if _holds_a_run(run_dir / JOURNAL):
        raise LogError(
            f"{run_dir} already holds the journal of a run; choose another run directory"
        )
    return _open(run_dir, log_id, workspace, nats, ack, accept_unproved)


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
    under another key than the workspace's, ``ConflictError`` while another process writes it, and
    ``StoreUnavailableError`` when with ``ack="jetstream"`` the server does not have what it holds.
    """
    if not _holds_a_run(run_dir / JOURNAL):
        raise JournalError(f"{run_dir} holds no run that could be resumed")
    first = _first_segment(run_dir)
    if first.key_id != workspace.key().public.id:
        raise JournalError(
            f"was written under another key than that of the workspace {workspace.path}: set "
            "ESPER_WORKSPACE to the one that it was trained in"
        )
    log = _open(run_dir, first.log, workspace, nats, ack, accept_unproved)
    try:
        _await_acknowledgement(log)
        _check_resumable(run_dir, log)
    except BaseException:
        log.close()
        raise
    return log


def _await_acknowledgement(log: EventLog) -> None:
    """What a killed run wrote counts when it is acknowledged, as what it writes from now on."""
    if not log.flush(_ANSWER_SECONDS):
        reason = log.replica_state.reason or "no answer"
        raise StoreUnavailableError(
            "the server has not acknowledged what the journal holds, so the run cannot go on with "
            f'ack = "jetstream": {reason}'
        )


def _check_resumable(run_dir: Path, log: EventLog) -> None:
    records = log.records()
    if records and isinstance(records[-1].event, RunEnded):
        outcome = records[-1].event.outcome
        raise RunEndedError(
            f"the run in {run_dir} has ended ({outcome}): there is nothing to resume"
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


def certify_in_run(run_dir: Path, root: SigningKey, key: PublicKey, role: Role) -> None:
    """Append to the run in ``run_dir``, which nobody may be writing, that ``root``, with which its
    log began, certifies ``key`` for it.

    Raises ``JournalError`` where there is no whole log of that root, and ``LogError`` where it
    cannot be continued, by this key or at all.
    """
    log = _first_segment(run_dir).log
    certificate = certify(root, key, role, log)
    event = KeyCertified(time=time.time(), certificate=certificate)
    journal = JournalStore(run_dir / JOURNAL.parent)
    try:
        for _ in LogReader(run_dir, root.public).records():
            pass  # The checkpoint too: what it commits to has to be there.
        SegmentWriter(journal, root, log).write([encode_event(event)])
    except ChainError as error:
        raise JournalError(str(error)) from error
    finally:
        journal.close()


def logged_start(run_dir: Path) -> RunStarted:
    """The first event of the run in ``run_dir``, as its journal holds it.

    Raises ``JournalError`` when the journal does not begin with one.
    """
    try:
        event = decode_event(_first_segment(run_dir).events[0])
    except CodecError as error:
        raise JournalError(f"{JOURNAL} does not begin with a run: {error}") from error
    if not isinstance(event, RunStarted):
        raise JournalError(f"{JOURNAL} does not begin with the start of a run")
    return event


def _first_segment(run_dir: Path) -> Segment:
    try:
        with open_journal(run_dir) as file:
            first = next((segment for _, segment in read_frames(file)), b"")
    except OSError as error:
        raise JournalError(f"cannot be read: {cause(error)}") from error
    except ChainError as error:
        raise JournalError(str(error)) from error
    try:
        return open_segment(first)
    except SegmentError as error:
        raise JournalError(
            f"{JOURNAL} does not begin with a whole segment: a run that was killed before its "
            "first event was on disk has nothing to resume, start it anew"
        ) from error


def _open(
    run_dir: Path,
    log_id: str,
    workspace: Workspace,
    nats: str | None,
    ack: Acknowledgement,
    accept_unproved: bool,
) -> EventLog:
    source = source_for(log_id, workspace, nats)
    if nats is not None:
        _weigh_durability(Endpoint.of_user(nats), ack, accept_unproved)
    key = workspace.key()
    certificate = workspace.certificate(key.public)
    journal = JournalStore(run_dir / JOURNAL.parent)
    try:
        key.public.save(run_dir / TRAINER_KEY)
        return EventLog(journal, key, log_id, source, ack, run_dir=run_dir, certificate=certificate)
    except BaseException as error:
        journal.close()
        if isinstance(error, OSError):
            raise LogError(f"cannot write in {run_dir}: {error}") from error
        raise


def _holds_a_run(journal: Path) -> bool:
    """An empty journal is what a run leaves that ended before its first event."""
    try:
        return journal.stat().st_size > 0
    except FileNotFoundError:
        return False
    except OSError as error:
        raise LogError(f"cannot look into {journal}: {error}") from error


def _weigh_durability(endpoint: Endpoint, ack: Acknowledgement, accept_unproved: bool) -> None:
    if is_proved(endpoint):
        return
    doubt = (
        f"{endpoint.name}: nothing shows that this server syncs every message to disk "
        "(jetstream sync_interval: always); set ESPER_NATS_MONITOR to its monitoring URL to "
        "prove it"
    )
    if ack == "jetstream" and not accept_unproved:
        raise LogError(f'{doubt}, accept it explicitly, or use ack="journal"')
    _logger.warning("%s; the local journal does not depend on it", doubt)
