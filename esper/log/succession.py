"""Bringing the log of a run that is to go on under the key that its workspace signs with now."""

from __future__ import annotations

import socket
import time

from msgspec import UNSET

from esper.log.errors import JournalError
from esper.log.journal import JournalStore
from esper.log.keyring import Keyring
from esper.log.opening import Beginning
from esper.log.sources import EmbeddedSource, UserSource
from esper.log.workspace import Workspace
from esper.log.writer import SegmentWriter
from esper_events.chain import ChainVerifier
from esper_events.codec import encode_event
from esper_events.errors import ChainError, KeyFileError
from esper_events.events import KeyRotated, RunTakenOver
from esper_events.segment import open_segment


def succeed(
    workspace: Workspace, journal: JournalStore, _source: EmbeddedSource | UserSource
) -> Beginning:
    """What to begin with so that the workspace's key can go on with the run in ``journal``.

    A log that has committed to no key that came since is taken over, under a root that vouches for
    both. Raises ``JournalError`` where the run cannot go on, or is another workspace's.
    """
    chain = follow_keys(workspace, journal)
    return Beginning() if chain is None else _take_over(workspace, chain)


def follow_keys(workspace: Workspace, journal: JournalStore) -> ChainVerifier | None:
    """Put on record in ``journal`` to which keys that of the run was rotated since it was left; the
    log where it has not committed to them, so that they cannot be.

    Raises ``JournalError`` where the run is another workspace's, or cannot go on.
    """
    try:
        *_, last = journal.read(journal.count - 1)
        if open_segment(last).key_id == workspace.key().public.id:
            return None
        keys, chain = workspace.keys, _follow(journal)
        tenure, line = chain.authority.tenures[-1], keys.line()
        known = [keys.public(name) for name in line]
        if tenure.key not in known:
            raise JournalError(
                f"was written under another key than that of the workspace {workspace.path}: set "
                "ESPER_WORKSPACE to the one that it was trained in"
            )
        later = known.index(tenure.key) + 1
        if later < len(line) and tenure.next_key != known[later].digest:
            return chain
        for name in line[later:]:
            _rotate(keys, name, journal, chain)
    except KeyFileError as error:
        raise JournalError(f"a key of the workspace cannot be used: {error}") from error
    return None


def _rotate(keys: Keyring, name: str, journal: JournalStore, chain: ChainVerifier) -> None:
    told = keys.credentials(name).under(chain.authority.root)
    event = KeyRotated(
        time=time.time(),
        trainer_key=told.trainer_key,
        certificate=told.certificate,
        next_key=told.next_key,
    )
    SegmentWriter(journal, keys.load(name), chain.log).write([encode_event(event)])


def _take_over(workspace: Workspace, chain: ChainVerifier) -> Beginning:
    told, authority = workspace.credentials(), chain.authority
    if authority.root is None or told.certificate is UNSET:
        raise JournalError(
            f"was written under {authority.tenures[-1].key.fingerprint}, which the workspace "
            f"{workspace.path} signs with no more; the log has not committed to the key that came "
            "after it, and no root vouches for both: it cannot go on"
        )
    event = RunTakenOver(
        time=time.time(),
        epoch=chain.epoch + 1,
        holder=socket.gethostname(),
        after=chain.head.hex(),
        trainer_key=told.trainer_key,
        reason="the workspace signs with another key now",
        certificate=told.certificate,
        next_key=told.next_key,
    )
    return Beginning(event.epoch, event)


def _follow(journal: JournalStore) -> ChainVerifier:
    chain = ChainVerifier()
    try:
        for segment in journal.read():
            chain.accept(segment)
    except ChainError as error:
        raise JournalError(f"the log cannot be continued: {error}") from error
    return chain
