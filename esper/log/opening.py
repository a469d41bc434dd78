"""Where the log of a run is, here and on a server, and opening it there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from esper.log.durability import is_proved
from esper.log.endpoint import Endpoint
from esper.log.errors import JournalError, LogError
from esper.log.event_log import EventLog
from esper.log.journal import JournalStore
from esper.log.registry import Registrar, seen_in, signer_of
from esper.log.settling import Acknowledgement
from esper.log.sources import EmbeddedSource, UserSource, source_for
from esper.log.workspace import Workspace
from esper_events.codec import decode_event
from esper_events.errors import ChainError, CodecError, SegmentError, cause
from esper_events.events import Event, RunStarted
from esper_events.framing import JOURNAL, read_frames
from esper_events.keys import PublicKey
from esper_events.reader import open_journal
from esper_events.segment import Segment, open_segment

TRAINER_KEY = "trainer.pub"
"""The public key that the run's log began with, in its directory, to be compared or pinned."""

_logger = logging.getLogger("esper.log")


class Beginning(NamedTuple):
    """The lease epoch to write in, None for the one that the log is in, and what is written before
    everything else."""

    epoch: int | None = None
    event: Event | None = None


Prepare = Callable[[JournalStore, EmbeddedSource | UserSource], Beginning]


@dataclass(frozen=True)
class RunPlace:
    """The directory of a run, its log id, and the server: the workspace's own, or the user's at the
    URL ``nats``."""

    run_dir: Path
    log_id: str
    workspace: Workspace
    nats: str | None
    ack: Acknowledgement
    accept_unproved: bool = False

    def open(self, prepare: Prepare | None = None) -> EventLog:
        """The log, new or to be continued. ``prepare`` may see to the journal before that.

        A user's server that cannot be shown to sync every message is warned of; with
        ``ack="jetstream"`` it is refused unless ``accept_unproved``.

        Raises ``LogError``, and what ``prepare`` raises.
        """
        if self.nats is not None:
            self._weigh_durability(Endpoint.of_user(self.nats))
        source = source_for(self.log_id, self.workspace, self.nats)
        try:
            journal = JournalStore(self.run_dir / JOURNAL.parent)
        except BaseException:
            source.close()
            raise
        try:
            return self._open(journal, source, prepare)
        except BaseException as error:
            journal.close()
            source.close()
            if isinstance(error, OSError):
                raise LogError(f"cannot write in {self.run_dir}: {error}") from error
            raise

    def _open(
        self,
        journal: JournalStore,
        source: EmbeddedSource | UserSource,
        prepare: Prepare | None,
    ) -> EventLog:
        beginning = Beginning() if prepare is None else prepare(journal, source)
        key = self.workspace.key()
        founder = logged_start(self.run_dir).trainer_key if journal.count else key.public.raw
        PublicKey(founder).save(self.run_dir / TRAINER_KEY)
        self.workspace.note_run(self.log_id, self.run_dir)
        seen = seen_in(self.workspace, source.name)
        signer = partial(signer_of, self.workspace)
        registrar = Registrar(source.name, self.run_dir, journal, signer, seen)
        return EventLog(
            journal,
            key,
            self.log_id,
            source,
            self.ack,
            run_dir=self.run_dir,
            credentials=self.workspace.credentials(),
            epoch=beginning.epoch,
            begin=beginning.event,
            objects=source,
            on_level=registrar.level,
        )

    def _weigh_durability(self, endpoint: Endpoint) -> None:
        if is_proved(endpoint):
            return
        doubt = (
            f"{endpoint.name}: nothing shows that this server syncs every message to disk "
            "(jetstream sync_interval: always); set ESPER_NATS_MONITOR to its monitoring URL to "
            "prove it"
        )
        if self.ack == "jetstream" and not self.accept_unproved:
            raise LogError(f'{doubt}, accept it explicitly, or use ack="journal"')
        _logger.warning("%s; the local journal does not depend on it", doubt)


def logged_start(run_dir: Path) -> RunStarted:
    """The first event of the run in ``run_dir``, as its journal holds it.

    Raises ``JournalError`` when the journal does not begin with one.
    """
    try:
        event = decode_event(first_segment(run_dir).events[0])
    except CodecError as error:
        raise JournalError(f"{JOURNAL} does not begin with a run: {error}") from error
    if not isinstance(event, RunStarted):
        raise JournalError(f"{JOURNAL} does not begin with the start of a run")
    return event


def first_segment(run_dir: Path) -> Segment:
    """The first segment of the journal in ``run_dir``; raises ``JournalError``."""
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


def holds_a_run(run_dir: Path) -> bool:
    """Whether there is one in ``run_dir``. An empty journal is what a run leaves that ended before
    its first event."""
    journal = run_dir / JOURNAL
    try:
        return journal.stat().st_size > 0
    except FileNotFoundError:
        return False
    except OSError as error:
        raise LogError(f"cannot look into {journal}: {error}") from error
