"""Reading a run, from its directory or an exported file, and proving it on the way."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from esper_events.ahead import read_ahead
from esper_events.anchor import Anchor
from esper_events.chain import ChainVerifier
from esper_events.checkpoint import (
    CHECKPOINT,
    MAX_CHECKPOINT_BYTES,
    SignedCheckpoint,
    parse_checkpoint,
)
from esper_events.errors import ChainError, CheckpointError, DistrustError
from esper_events.events import Record
from esper_events.framing import JOURNAL, LENGTH, read_frames
from esper_events.revocation import Revocation

MAGIC = b"esper export 1\n"
"""First bytes of an exported run; its layout stands in `esper_events.export`."""


class LogReader:
    """The records of the run at ``path``, a run directory or an exported file.

    Args:
        path: what to read.
        trusted: the trainer's key or its fingerprint where the caller knows it.
        kept: a checkpoint of this log that the caller kept: the log must bear it out as well.
        revoked: what the caller knows of keys that were taken back, each checked; a log cannot hold
            what was revoked after its end, nor what a thief leaves out.
        verifier: `AuditVerifier` for who draws nothing from what the records mean, so that a log of
            a newer version can be read: what cannot be, is then left out.

    Attributes: ``verifier`` (what was proven so far), and ``signed``, the run's own signed
    checkpoint that the whole log agrees with, None until the end was reached or where there is
    none.
    """

    def __init__(
        self,
        path: Path,
        trusted: Anchor | None = None,
        kept: SignedCheckpoint | None = None,
        revoked: Sequence[Revocation] = (),
        verifier: type[ChainVerifier] = ChainVerifier,
    ) -> None:
        self.path = Path(path)
        self.verifier = verifier(trusted)
        self.signed: SignedCheckpoint | None = None
        self._kept = kept
        self._revoked = revoked
        if kept is not None:
            self.verifier.watch(kept.checkpoint.size)

    def records(self) -> Iterator[Record]:
        """Each record in order, proven before it is handed out. To be read once.

        Raises:
            ChainError: the run is damaged; records handed out before that are good, but for the
                checkpoint and for keys that were revoked, which count at the end.
            OSError: a file cannot be read.
        """
        return chain.from_iterable(self.segments())

    def segments(self) -> Iterator[list[Record]]:
        """The records of each segment in order; else as `records`."""
        if self.path.is_dir():
            return self._read_directory()
        return self._read_export()

    def _read_directory(self) -> Iterator[list[Record]]:
        # The checkpoint first: a log that is being written then holds at least what it commits to.
        signed = read_checkpoint(self.path)
        if signed is not None:
            self.verifier.watch(signed.checkpoint.size)
        with open_journal(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            for at, segment, found in read_ahead(self.verifier, read_frames(file), size):
                yield self.verifier.accept(segment, at, found)
        if self.verifier.segments == 0:
            raise ChainError("the journal is empty: it holds not even the start of a run", 0, 0)
        require_trusted(self.verifier, self._revoked)
        if signed is not None:
            self.signed = borne_out(signed, self.verifier)
        self._agree_with_kept()

    def _read_export(self) -> Iterator[list[Record]]:
        with _open(self.path) as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise ChainError("neither a run directory nor an exported run", None, 0)
            frames = read_frames(file, len(MAGIC), terminated=True)
            size = os.fstat(file.fileno()).st_size
            for at, segment, found in read_ahead(self.verifier, frames, size):
                yield self.verifier.accept(segment, at, found)
            signed = read_footer(file)
        require_trusted(self.verifier, self._revoked)
        if signed.checkpoint.size < self.verifier.events:
            raise ChainError(
                f"holds {self.verifier.events} events, but its footer commits to "
                f"{signed.checkpoint.size}"
            )
        self.verifier.watched_roots[self.verifier.events] = self.verifier.tree.root()
        self.signed = borne_out(signed, self.verifier)
        self._agree_with_kept()

    def _agree_with_kept(self) -> None:
        if self._kept is not None:
            borne_out(self._kept, self.verifier, "the kept checkpoint")


def require_trusted(verifier: ChainVerifier, told: Sequence[Revocation] = ()) -> None:
    """Hold what ``verifier`` has accepted to the revocations in it, and to those that it is told.

    Raises:
        DistrustError: a key signed in it behind the bound that the root set.
    """
    distrust = verifier.authority.distrust
    distrust.heed(told)
    bound = distrust.first()
    if bound is not None:
        raise DistrustError(
            f"not to be trusted from here on: signed by {bound}; what stands before is whole",
            event=bound.since,
        )


def borne_out(
    signed: SignedCheckpoint, verifier: ChainVerifier, name: str = "its signed checkpoint"
) -> SignedCheckpoint:
    """The checkpoint, if the log that ``verifier`` has accepted agrees with it.

    Raises:
        ChainError: it does not, or the verifier was not told to `watch` the checkpoint's size.
    """
    checkpoint = signed.checkpoint
    if checkpoint.log != verifier.log:
        raise ChainError(f"{name} is of log {checkpoint.log}, this is {verifier.log}")
    reason = verifier.authority.refuses(signed, name)
    if reason is not None:
        raise ChainError(reason)
    if checkpoint.size > verifier.events:
        raise ChainError(
            f"the log ends after segment {verifier.segments - 1} with {verifier.events} "
            f"events, but {name} commits to {checkpoint.size}: it was cut or rolled back"
        )
    if checkpoint.root != verifier.watched_roots.get(checkpoint.size):
        raise ChainError(f"the first {checkpoint.size} events are not those {name} commits to")
    return signed


def read_checkpoint(run_dir: Path) -> SignedCheckpoint | None:
    """The checkpoint of a run directory, its signature unchecked; None where there is none.

    Raises:
        ChainError: the file is no checkpoint.
        OSError: the file cannot be read.
    """
    path = run_dir / CHECKPOINT
    if not path.exists():
        return None
    with _open(path) as file:
        return _parse(file.read(MAX_CHECKPOINT_BYTES + 1))


def open_journal(run_dir: Path) -> BinaryIO:
    """The journal in the directory of a run.

    Raises:
        ChainError: there is none, or it is no file.
        OSError: it cannot be opened.
    """
    if not (run_dir / JOURNAL).exists():
        raise ChainError(f"holds no run, {JOURNAL} is missing: wanted a run's directory or export")
    return _open(run_dir / JOURNAL)


def read_footer(file: BinaryIO) -> SignedCheckpoint:
    """The checkpoint that ends an exported file, read from behind its last segment.

    Raises:
        ChainError: there is none, or something stands behind it.
    """
    at = file.tell()
    prefix = file.read(LENGTH.size)
    length = LENGTH.unpack(prefix)[0] if len(prefix) == LENGTH.size else 0
    if not 1 <= length <= MAX_CHECKPOINT_BYTES:
        raise ChainError("the export's footer is missing or damaged", None, at)
    note = file.read(length + 1)
    if len(note) != length:
        state = "cut off" if len(note) < length else "followed by more bytes"
        raise ChainError(f"the export's footer is {state}", None, at)
    return _parse(note)


def _parse(note: bytes) -> SignedCheckpoint:
    try:
        return parse_checkpoint(note)
    except CheckpointError as error:
        raise ChainError(str(error)) from error


def _open(path: Path) -> BinaryIO:
    if path.exists() and not path.is_file():
        raise ChainError(f"{path} is not a regular file")
    return path.open("rb")
