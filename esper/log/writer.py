"""Turns batches of encoded events into signed segments in the journal, one after the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path

from esper.log.errors import JournalError, LogError, unwritten
from esper.log.store import Store
from esper.log.ticket import Ticket
from esper_events.chain import ChainVerifier
from esper_events.checkpoint import Checkpoint, write_checkpoint
from esper_events.codec import decode_events
from esper_events.errors import ChainError
from esper_events.events import Record
from esper_events.keys import PublicKey, SigningKey
from esper_events.place import Place
from esper_events.segment import MAX_SEGMENT_BYTES, seal, segment_hash

BATCH_BYTES = 512 << 10
"""A segment takes no further append beyond this size; a NATS server takes 1 MiB by default."""
MAX_APPEND_BYTES = MAX_SEGMENT_BYTES - (64 << 10)
"""Largest sum of encoded events in one append: it must fit one segment."""

_LENGTH_BYTES = 4
_CHECKPOINT_SECONDS = 1.0


@dataclass(frozen=True)
class Pending:
    """One append that waits for its segment."""

    ticket: Ticket
    events: list[bytes]

    @property
    def size(self) -> int:
        """Bytes that it takes in a segment."""
        return framed_size(self.events)


def framed_size(events: Sequence[bytes]) -> int:
    """Bytes of ``events`` in a segment, each behind its length."""
    return sum(map(len, events)) + _LENGTH_BYTES * len(events)


def _refusal(chain: ChainVerifier, key: PublicKey, *, rises: bool) -> str | None:
    """Why ``key`` cannot write next, if only that the trainer's key is rotated to it; who takes the
    run over in a higher epoch is held to what that event says."""
    authority = chain.authority
    bound = authority.distrust.first()
    if bound is not None and key != authority.root:
        return f"from event {bound.since} on it is not to be trusted, signed by {bound}"
    if rises or not chain.segments or authority.may_write(key):
        return None
    return None if authority.tenures[-1].next_key == key.digest else authority.no_more(key)


class SegmentWriter:
    """The end of one log: seals what comes next, and signs checkpoints of what is durable.

    Not thread safe: one thread writes. A segment that the verifier would refuse for what it says
    is never written. It goes on in the log's lease epoch, or begins ``epoch``: what is written
    first is then `RunTakenOver`, by whatever ``key`` that lets go on.

    Raises ``JournalError`` for a journal that is damaged or in which ``key`` may not write, and
    ``LogError`` for another log, or where its epoch has passed ``epoch``.
    """

    def __init__(
        self,
        journal: Store,
        key: SigningKey,
        log_id: str,
        run_dir: Path | None = None,
        epoch: int | None = None,
    ) -> None:
        self._journal = journal
        self._key = key
        self._log = log_id
        self._run_dir = run_dir
        chain = ChainVerifier()
        self.replayed: list[Record] = []
        """What the journal held already."""
        try:
            for segment in journal.read():
                self.replayed += chain.accept(segment)
        except ChainError as error:
            raise JournalError(f"the log cannot be continued: {error}") from error
        if chain.segments and chain.log != log_id:
            raise LogError(f"the journal holds log {chain.log!r}, wanted {log_id!r}")
        self._epoch = chain.epoch if epoch is None else epoch
        if self._epoch < chain.epoch:
            raise LogError(
                f"the log is in lease epoch {chain.epoch} already: another writer has the run, and "
                f"that of epoch {epoch} can write no more"
            )
        reason = _refusal(chain, key.public, rises=self._epoch > chain.epoch)
        if reason is not None:
            raise JournalError(f"the log cannot be continued: {reason}")
        self._head = chain.head
        self._tree = chain.tree
        self._admission = chain.admission
        self._checkpointed = chain.events
        self._unsigned: tuple[int, Checkpoint] | None = None
        self._checkpoint_due = time.monotonic() + _CHECKPOINT_SECONDS

    @property
    def events(self) -> int:
        """Number of events in the journal."""
        return self._tree.size

    @property
    def head(self) -> bytes:
        """SHA-256 of the last segment, zeros before the first."""
        return self._head

    def write(self, events: Sequence[bytes]) -> list[Record]:
        """Seal ``events`` and append them to the journal; durable on return.

        The records are decoded from the bytes that were signed. Raises ``LogError`` for events
        that cannot stand there, and what the journal raises.
        """
        records = self._admitted(events)
        segment = seal(
            events,
            log=self._log,
            first_index=self.events,
            previous=self._head,
            key=self._key,
            epoch=self._epoch,
        )
        self._journal.append(self._journal.count, segment)
        self._head = segment_hash(segment)
        self._tree.extend(events)
        return records

    def _admitted(self, events: Sequence[bytes]) -> list[Record]:
        place = Place(self._log, self._key.public, self._epoch, self.events, self._head)
        records = list(starmap(Record, enumerate(decode_events(events), self.events)))
        for record in records:
            reason = self._admission.admit(record.event, place, record.index)
            if reason is not None:
                raise LogError(f"event {record.index} of log {self._log} was not written: {reason}")
        return records

    def checkpoint(self, acknowledged: int, *, now: bool = False) -> None:
        """Sign size and root of the log into the run's directory, as soon as all that they commit
        to is among the first ``acknowledged`` segments: what is not may never become history.

        At most once a second, unless ``now``. Raises ``JournalError`` when it cannot be written.
        """
        if self._run_dir is None:
            return
        waiting = self._unsigned is not None and not now
        if not waiting and (now or time.monotonic() >= self._checkpoint_due):
            self._unsigned = self._commitment()
        if self._unsigned is None or self._unsigned[0] > acknowledged:
            return
        note = self._unsigned[1].sign(self._key)
        try:
            write_checkpoint(self._run_dir, note)
        except OSError as error:
            raise unwritten(f"{self._run_dir}/checkpoint", len(note), error) from error
        self._checkpointed = self._unsigned[1].size
        self._unsigned = None
        self._checkpoint_due = time.monotonic() + _CHECKPOINT_SECONDS

    def _commitment(self) -> tuple[int, Checkpoint] | None:
        """What is in the journal now, in how many segments; None where that is signed already."""
        if self._checkpointed == self.events:
            return None
        return self._journal.count, Checkpoint(self._log, self.events, self._tree.root())
