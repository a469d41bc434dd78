"""Completing the two copies of a run, each from the other, when nobody is writing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from esper.log.copies import complete
from esper.log.damaged import Kept
from esper.log.errors import (
    ConflictError,
    DamagedStoreError,
    JournalError,
    LogError,
    ServerStartError,
)
from esper.log.jetstream import JetStreamStore
from esper.log.journal import writer_lock
from esper.log.objects import named_checkpoints, named_objects
from esper.log.rebuild import log_of, rebuild_journal
from esper.log.registry import register
from esper.log.sources import EmbeddedSource, UserSource, source_for
from esper.log.store import SharedStore
from esper.log.stream import stream_name
from esper.log.workspace import Workspace
from esper_events.errors import ChainError, SegmentError, cause
from esper_events.events import Record
from esper_events.framing import JOURNAL, LENGTH, read_frames
from esper_events.newer import AuditVerifier
from esper_events.reader import LogReader
from esper_events.segment import open_segment, segment_hash


@dataclass(frozen=True)
class Repair:
    """What was done: ``sent`` of ``segments`` went to ``server``, which now holds them all.

    ``damage`` tells why the journal was good only up to there; "" when it was whole. ``replaced``
    tells what was wrong with the server's copy where it had to be made anew, and where the damaged
    one lies now; "" where it had not. ``unregistered`` tells why the registry does not have the
    run, or not as much of it; "" where it has. ``rebuilt`` tells how the journal was made anew from
    what the server has, and ``objects`` which objects and checkpoints had to be copied, or are
    nowhere; "" where there was nothing to do.
    """

    server: str
    segments: int
    sent: int
    damage: str = ""
    replaced: str = ""
    unregistered: str = ""
    rebuilt: str = ""
    objects: str = ""

    def __str__(self) -> str:
        done = (
            f"the copy on {self.server} was whole"
            if not self.sent
            else f"{self.sent} segments sent"
        )
        text = f"{done}; {self.server} holds all {self.segments}, equal to the journal's"
        if self.replaced:
            text = f"the server's copy was damaged: {self.replaced}; {text}"
        if self.rebuilt:
            text = f"{self.rebuilt}; {text}"
        if self.objects:
            text = f"{text}; {self.objects}"
        if self.unregistered:
            text = f"{text}; it is not on record in the registry: {self.unregistered}"
        return f"{text}; the journal is damaged behind them: {self.damage}" if self.damage else text


def repair_replica(run_dir: Path, workspace: Workspace, nats: str | None = None) -> Repair:
    """Send the segments that the server lacks, after comparing every one that it holds; make the
    journal anew where the server holds more of it than is good here. Objects that the log names,
    and its newest checkpoints, are copied to where they are missing.

    The server is the workspace's own, or the user's at the URL ``nats``. A journal that gives way
    stays beside the new one. Raises ``LogError``: no journal, a run that is still being written, a
    server that does not answer, or one that holds something else.
    """
    path = run_dir / JOURNAL
    try:
        if not path.is_file():
            raise JournalError(f"holds no run, {JOURNAL} is missing: wanted a run's directory")
        with writer_lock(path.parent) as lock:
            if not lock.acquire():
                raise ConflictError(
                    f"{path} is being written by a run, which keeps its copy level by itself"
                )
            return _repair(path, workspace, nats)
    except OSError as error:
        raise JournalError(f"cannot be read: {cause(error)}") from error


def _repair(path: Path, workspace: Workspace, nats: str | None) -> Repair:
    log = log_of(path)
    source = source_for(log, workspace, nats)
    replaced = ""
    try:
        try:
            done = _exchange(source, path, workspace)
        except (DamagedStoreError, ServerStartError) as error:
            _require_whole(path.parent.parent, error)
            kept = _set_aside(source, log, error)
            try:
                done = _exchange(source, path, workspace)
            except ServerStartError:  # for a reason that is not in this stream
                kept.put_back()
                raise
            replaced = f"{error}; its files lie in {kept.now} now"
    finally:
        source.close()
    return replace(done, replaced=replaced)


def _exchange(source: EmbeddedSource | UserSource, path: Path, workspace: Workspace) -> Repair:
    """Bring each side what only the other has."""
    store = source.connect()
    try:
        good = _survey(path)
        rebuilt, state = None, f"damaged ({good.damage})" if good.damage else "cut short"
        if store.count > len(good.hashes):
            rebuilt = rebuild_journal(path, list(store.read()))
            good = _survey(path)
        if not good.hashes:
            raise JournalError(f"{JOURNAL} holds no valid segment: {good.damage or 'it is empty'}")
        return Repair(
            source.name,
            len(good.hashes),
            _complete(store, path, good.hashes),
            good.damage,
            rebuilt="" if rebuilt is None else f"the journal was {state}: {rebuilt}",
            objects=_bring_objects(store, path.parent.parent, good.records),
            unregistered=_register(store, source.name, path, len(good.hashes), workspace),
        )
    finally:
        store.close()


def _bring_objects(store: JetStreamStore, run_dir: Path, records: Sequence[Record]) -> str:
    """What became of the objects and checkpoints that ``records`` name; "" where all are on both
    sides."""
    if not (named_objects(records) or named_checkpoints(records)):
        return ""
    try:
        done = complete(store.objects(), run_dir, records)
    except LogError as error:
        return f"objects were not compared: {error}"
    told = (f"{done[what]} {what}" for what in ("sent", "fetched", "missing") if done[what])
    text = ", ".join(told)
    return f"objects: {text}" if text else ""


def _register(store: SharedStore, server: str, path: Path, count: int, workspace: Workspace) -> str:
    """Why the registry could not be told of the run; "" where it has been."""
    ends = [data for number, (_, data) in enumerate(_frames(path)) if number in (0, count - 1)]
    try:
        register(store, server, path.parent.parent, (ends[0], ends[-1]), workspace)
    except LogError as error:
        return str(error)
    return ""


def _set_aside(source: EmbeddedSource | UserSource, log: str, error: LogError) -> Kept:
    """Have the server begin the stream anew; where the old one is."""
    if isinstance(source, UserSource):
        raise DamagedStoreError(
            f"{error}; it is not for a run to delete: delete the stream {stream_name(log)} as the "
            "server's administrator, then repair again"
        ) from error
    kept = source.set_aside()
    if kept is None:
        raise error
    return kept


def _require_whole(run_dir: Path, damage: LogError) -> None:
    """A journal takes the place of a damaged copy only when it holds all that it ever held."""
    try:
        for _ in LogReader(run_dir, verifier=AuditVerifier).records():
            pass
    except ChainError as error:
        raise DamagedStoreError(
            f"both copies are damaged: {damage}; the journal: {error}"
        ) from error


@dataclass(frozen=True)
class _Good:
    """The segments of a journal up to the first that is refused: their hashes, what they tell, and
    why that one is ("" where all are good)."""

    hashes: list[bytes]
    records: list[Record]
    damage: str


def _survey(path: Path) -> _Good:
    # What a newer version wrote is copied as it is.
    chain, hashes, records, damage = AuditVerifier(), list[bytes](), list[Record](), ""
    try:
        for at, segment in _frames(path):
            records += chain.accept(segment, at)
            hashes.append(segment_hash(segment))
    except ChainError as error:
        damage = str(error)
    return _Good(hashes, records, damage)


def _frames(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for offset, segment in read_frames(file):
            yield offset + LENGTH.size, segment


def _complete(store: SharedStore, path: Path, hashes: list[bytes]) -> int:
    held = store.count
    for position, segment in enumerate(store.read()):
        if segment_hash(segment) != hashes[position]:
            _tell_apart(position, segment)
    try:
        for position, (_, segment) in enumerate(_frames(path)):
            if held <= position < len(hashes):
                store.append(position, segment)
    except ConflictError as error:
        if store.refresh() != held:
            raise
        raise DamagedStoreError(f"it takes no segment {held} behind {held - 1}") from error
    return len(hashes) - held


def _tell_apart(position: int, segment: bytes) -> NoReturn:
    """``segment`` is what the server has in the place of the journal's number ``position``.

    A server's checksums leave out where the headers of a message end: a flipped bit there, and
    nowhere else, makes it give out something else, which then is no segment.
    """
    try:
        open_segment(segment)
    except SegmentError as error:
        raise DamagedStoreError(f"its segment {position} is none: {error}") from error
    raise ConflictError(
        f"segment {position} on the server is not the journal's: another writer has used this log "
        "id; nothing was sent"
    )
