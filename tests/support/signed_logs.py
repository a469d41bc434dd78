"""Logs that several keys write, laid out by somebody who knows the format."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from esper_events.checkpoint import Checkpoint
from esper_events.codec import encode_event
from esper_events.events import Event
from esper_events.framing import JOURNAL, frame
from esper_events.keys import SigningKey
from esper_events.merkle import MerkleTree
from esper_events.segment import GENESIS, seal, segment_hash
from support.event_runs import LOG


@dataclass
class SignedLog:
    """A log to which anything can be added under any key; nothing in it is checked."""

    log: str = LOG
    segments: list[bytes] = field(default_factory=list)
    leaves: list[bytes] = field(default_factory=list)

    @property
    def head(self) -> str:
        """SHA-256 of the last segment, in hex."""
        return (segment_hash(self.segments[-1]) if self.segments else GENESIS).hex()

    def say(self, key: SigningKey, *events: Event, epoch: int = 0) -> Self:
        """One more segment."""
        data = [encode_event(event) for event in events]
        first, previous = len(self.leaves), bytes.fromhex(self.head)
        self.segments.append(
            seal(data, log=self.log, first_index=first, previous=previous, key=key, epoch=epoch)
        )
        self.leaves += data
        return self

    def copy(self) -> SignedLog:
        """One that can go another way."""
        return SignedLog(self.log, [*self.segments], [*self.leaves])

    def note(self, key: SigningKey, size: int | None = None) -> bytes:
        """A checkpoint of its first ``size`` events, or of all, signed by ``key``."""
        tree = MerkleTree()
        for leaf in self.leaves[:size]:
            tree.append(leaf)
        return Checkpoint(self.log, tree.size, tree.root()).sign(key)

    def lay(self, directory: Path) -> Path:
        """As its writer leaves it in ``directory``, which is given back."""
        (directory / JOURNAL).parent.mkdir(parents=True, exist_ok=True)
        (directory / JOURNAL).write_bytes(b"".join(map(frame, self.segments)))
        return directory
