"""Following the log of a run that is being written, and proving each segment as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from esper_events.anchor import Anchor
from esper_events.chain import ChainVerifier
from esper_events.checkpoint import SignedCheckpoint
from esper_events.errors import ChainError
from esper_events.events import Record
from esper_events.framing import LENGTH, read_frames
from esper_events.reader import borne_out, open_journal, read_checkpoint, require_trusted


class LogFollower:
    """The log in the directory of a run, read as far as it goes, and on from there later.

    Each segment is held to the chain of those before it, each signed checkpoint to the events that
    it counts. A segment of which the end is not on disk yet is left for later. Whether the run has
    ended is for ``verifier.ended`` to tell.

    Args:
        run_dir: the run's directory; the journal has to be there.
        trusted: the trainer's key or its fingerprint where the caller knows it.

    Attributes: ``verifier`` (what was proven so far), and ``signed``, the last of the run's
    checkpoints that the log was held to, None before the first.
    """

    def __init__(self, run_dir: Path, trusted: Anchor | None = None) -> None:
        self.run_dir = run_dir
        self.verifier = ChainVerifier(trusted)
        self.signed: SignedCheckpoint | None = None
        self._read = 0

    def has_more(self) -> bool:
        """Whether the journal is not as long as what was read of it.

        Raises:
            ChainError: there is none.
            OSError: it cannot be read.
        """
        with open_journal(self.run_dir) as file:
            return file.seek(0, 2) != self._read

    def records(self) -> Iterator[Record]:
        """The records that have come since the last call, each proven before it is handed out; to
        be read to their end before they are asked for again.

        Raises:
            ChainError: the log is damaged, or is not the one that was followed so far.
            OSError: a file cannot be read.
        """
        # The checkpoint first: the log then holds at least what it commits to.
        signed = read_checkpoint(self.run_dir)
        begun = self.verifier.events
        if signed is not None:
            self._watch(signed.checkpoint.size)
        with open_journal(self.run_dir) as file:
            if file.seek(0, 2) < self._read:
                raise ChainError(f"the journal was cut: {self._read} bytes of it were read before")
            file.seek(self._read)
            frames = read_frames(file, self._read, number=self.verifier.segments, growing=True)
            for at, segment in frames:
                records = self.verifier.accept(segment, at + LENGTH.size)
                self._read = at + LENGTH.size + len(segment)
                yield from records
        require_trusted(self.verifier)
        # One that counts less than what had been read was due before, and is none to go by.
        if signed is not None and signed.checkpoint.size >= begun:
            self.signed = borne_out(signed, self.verifier)

    def _watch(self, size: int) -> None:
        if size == self.verifier.events:
            self.verifier.watched_roots[size] = self.verifier.tree.root()
        else:
            self.verifier.watch(size)
