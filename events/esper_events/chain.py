"""Following a log segment by segment: signatures, hash chain, contiguity and rules."""

from __future__ import annotations

from msgspec import UNSET

from esper_events.anchor import Anchor
from esper_events.authority import Authority
from esper_events.codec import decode_event
from esper_events.errors import ChainError, CodecError, PublicKeyError, SegmentError
from esper_events.events import Event, Record, RunStarted
from esper_events.keys import PublicKey
from esper_events.merkle import MerkleTree
from esper_events.rules import Rules
from esper_events.segment import GENESIS, Segment, open_segment, segment_hash


class ChainVerifier:
    """Accepts the segments of one log in order and refuses the first that does not fit.

    Args:
        trusted: the trainer's key, or a root key that vouches for it, or the fingerprint of either
            where the caller knows it. Without it the key is taken from the log's first event
            (trust on first use): a log that was rewritten from its genesis under another key is
            then not detected.

    Attributes: ``events``, ``segments`` (accepted so far), ``head`` (SHA-256 of the last segment,
    `GENESIS` before the first), ``log`` ("" before the first), ``key`` (the trainer's), ``signer``
    (the key of the last segment), ``ended`` (the run's last event was seen), ``rules``,
    ``authority`` (who may write what), ``tree`` (over all events), and ``watched_roots``: the root
    that the tree had at each size that `watch` named.
    """

    def __init__(self, trusted: Anchor | None = None) -> None:
        self.key = trusted if isinstance(trusted, PublicKey) else None
        self.signer = self.key
        self._trusted = trusted
        self.segments = 0
        self.head = GENESIS
        self.log = ""
        self.epoch = 0
        self.rules = Rules()
        self.authority = Authority()
        self.tree = MerkleTree()
        self.watched_roots: dict[int, bytes] = {}
        self._watched: set[int] = set()
        self._refused = False

    @property
    def events(self) -> int:
        """Events accepted so far; also the index of the next one."""
        return self.tree.size

    @property
    def ended(self) -> bool:
        """Whether the last accepted event is the end of the run."""
        return self.rules.ended

    def watch(self, size: int) -> None:
        """Keep the root of the tree for when it has ``size`` events; call it before it has."""
        self._watched.add(size)

    def accept(self, data: bytes, at: int = 0) -> list[Record]:
        """The records of the next segment ``data``, which begins at byte ``at`` of its source.

        Raises:
            ChainError: the segment is damaged, not signed by the log's key, out of place, or says
                what no run can say. The verifier accepts nothing more after that.
        """
        if self._refused:
            raise ChainError("an earlier segment was refused; nothing after it can be accepted")
        self._refused = True
        segment = self._open(data, at)
        key = self._key_of(segment, at)
        self._check_place(segment, key, at)
        records = self._read(segment, key, at)
        if not self.segments:
            self.key = key
        self.signer = key
        self.log, self.epoch = segment.log, segment.epoch
        self.head = segment_hash(data)
        self.segments += 1
        self._refused = False
        return records

    def _open(self, data: bytes, at: int) -> Segment:
        try:
            return open_segment(data)
        except SegmentError as error:
            raise ChainError(str(error), self.segments, at + error.byte) from error

    def _key_of(self, segment: Segment, at: int) -> PublicKey:
        if self.key is not None and (self.segments or not self._is_certified(segment, self.key)):
            return self.authority.key(segment.key_id) or self.key
        started = self._decode(segment, 0, at)
        if not isinstance(started, RunStarted):
            raise ChainError("the log does not begin with run.started", 0, at, 0)
        byte = at + segment.event_byte(0)
        try:
            key = PublicKey(started.trainer_key)
        except PublicKeyError as error:
            raise ChainError(str(error), 0, byte, 0) from error
        reason = self._distrust(started, key)
        if reason is not None:
            raise ChainError(reason, 0, byte, 0)
        return key

    def _is_certified(self, segment: Segment, trusted: PublicKey) -> bool:
        """Whether the genesis leaves it to a certificate to say whether its signer is trusted."""
        if segment.key_id == trusted.id:
            return False
        try:
            started = decode_event(segment.events[0])
        except CodecError:
            return False
        return isinstance(started, RunStarted) and started.certificate is not UNSET

    def _distrust(self, started: RunStarted, key: PublicKey) -> str | None:
        """Why ``key`` is not the one that is trusted, nor vouched for by it; its certificate is
        checked when the event is admitted."""
        if self._trusted is None or self._trusted.vouches_for(key):
            return None
        wanted = self._trusted.fingerprint
        if started.certificate is UNSET:
            return f"the trainer's key is {key.fingerprint}, wanted {wanted}"
        try:
            root = PublicKey(started.certificate.root)
        except PublicKeyError as error:
            return f"the certificate names no root: {error}"
        if self._trusted.vouches_for(root):
            return None
        return (
            f"the trainer's key is {key.fingerprint}, certified by the root {root.fingerprint}, "
            f"wanted {wanted}"
        )

    def _check_place(self, segment: Segment, key: PublicKey, at: int) -> None:
        reason = None
        if segment.key_id != key.id:
            reason = f"signed by key {segment.key_id.hex()}, wanted {key.id.hex()}"
        elif not segment.is_signed_by(key):
            reason = "the signature does not fit the bytes"
        elif self.log and segment.log != self.log:
            reason = f"belongs to log {segment.log!r}, not to {self.log!r}"
        elif segment.first_index != self.events:
            reason = (
                f"begins with event {segment.first_index}, wanted {self.events}: "
                "a segment is missing, doubled or out of order"
            )
        elif segment.previous != self.head:
            reason = "does not follow the segment before it: their hashes differ"
        elif segment.epoch < self.epoch:
            reason = f"lease epoch {segment.epoch} after epoch {self.epoch}"
        if reason is not None:
            raise ChainError(reason, self.segments, at)

    def _read(self, segment: Segment, key: PublicKey, at: int) -> list[Record]:
        records = []
        for position, data in enumerate(segment.events):
            index = self.events
            event = self._decode(segment, position, at)
            reason = self.rules.admit(event) or self.authority.admit(event, key, segment.log)
            if reason is not None:
                raise ChainError(reason, self.segments, at + segment.event_byte(position), index)
            self.tree.append(data)
            if self.events in self._watched:
                self.watched_roots[self.events] = self.tree.root()
            records.append(Record(index, event))
        return records

    def _decode(self, segment: Segment, position: int, at: int) -> Event:
        try:
            return decode_event(segment.events[position])
        except CodecError as error:
            byte = at + segment.event_byte(position)
            index = segment.first_index + position
            raise ChainError(str(error), self.segments, byte, index) from error
