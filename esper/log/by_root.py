"""What a root key writes in the log of a run that stands still: which keys may write, and which no
more."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from esper.log.errors import JournalError
from esper.log.journal import JournalStore
from esper.log.writer import SegmentWriter
from esper_events.certificate import Role, certify
from esper_events.chain import ChainVerifier
from esper_events.codec import encode_event
from esper_events.errors import ChainError, DistrustError
from esper_events.events import KeyCertified, KeyRevoked
from esper_events.framing import JOURNAL
from esper_events.keys import PublicKey, SigningKey
from esper_events.reader import LogReader
from esper_events.revocation import Revocation, revoke


def certify_in_run(run_dir: Path, root: SigningKey, key: PublicKey, role: Role) -> None:
    """Append to the run in ``run_dir``, which nobody may be writing, that ``root``, with which its
    log began, certifies ``key`` for it.

    Raises ``JournalError`` where there is no whole log of that root, and ``LogError`` where it
    cannot be continued, by this key or at all.
    """
    with _standing(run_dir, root) as (log, journal):
        event = KeyCertified(time=time.time(), certificate=certify(root, key, role, log.log))
        SegmentWriter(journal, root, log.log).write([encode_event(event)])


def revoke_in_run(
    run_dir: Path, root: SigningKey, key: PublicKey, since: int | None, reason: str
) -> tuple[Revocation, bool]:
    """Append that ``root`` takes ``key`` back from event ``since`` on, or from the log's end on
    where that is None. The revocation, and whether it is on record: behind the end of a run nothing
    can be. Raises what `certify_in_run` does."""
    with _standing(run_dir, root) as (log, journal):
        told = revoke(root, key, log.log, log.events if since is None else since)
        if not log.ended:
            event = KeyRevoked(time=time.time(), revocation=told, reason=reason)
            SegmentWriter(journal, root, log.log).write([encode_event(event)])
        return told, not log.ended


@contextlib.contextmanager
def _standing(run_dir: Path, root: SigningKey) -> Iterator[tuple[ChainVerifier, JournalStore]]:
    """The whole log of the run, verified, and its journal, which nobody else writes meanwhile."""
    reader = LogReader(run_dir, root.public)
    journal = JournalStore(run_dir / JOURNAL.parent)
    try:
        # What is not trusted already can be less so.
        with contextlib.suppress(DistrustError):
            for _ in reader.records():
                pass  # The checkpoint too: what it commits to has to be there.
        yield reader.verifier, journal
    except ChainError as error:
        raise JournalError(str(error)) from error
    finally:
        journal.close()
