"""What holds for every log, whatever its events: signatures, hash chain, contiguity."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from typing import ClassVar, Generic, NamedTuple, TypeVar

from msgspec import UNSET, UnsetType

from esper_events.anchor import Anchor
from esper_events.certificate import Certificate
from esper_events.codec import Codec
from esper_events.errors import ChainError, CodecError, PublicKeyError, SegmentError
from esper_events.examine import Examined
from esper_events.keys import PublicKey
from esper_events.merkle import MerkleTree, leaf_hashes
from esper_events.place import Place
from esper_events.segment import GENESIS, Segment, open_segment, segment_hash

E = TypeVar("E")
R = TypeVar("R")


class Founder(NamedTuple):
    """The raw key that a genesis names as its signer's, and a root key's certificate for it."""

    key: bytes
    certificate: Certificate | UnsetType


class Chain(abc.ABC, Generic[E, R]):
    """Accepts the segments of one log in order and refuses the first that does not fit.

    What the events are, and who may write them, is for the subclass to say.

    Args:
        trusted: the key of the log's first writer, or a root key that vouches for it, or the
            fingerprint of either where the caller knows it. Without it the key is taken from the
            log's first event (trust on first use): a log that was rewritten from its genesis under
            another key is then not detected.

    Attributes: ``segments`` (accepted so far), ``head`` (SHA-256 of the last segment, `GENESIS`
    before the first), ``first`` (that of the first), ``log`` ("" before it), ``signer`` (the key
    of the last segment), ``tree`` (over all events), and ``watched_roots``: the root that the tree
    had at each size that `watch` named.
    """

    genesis: ClassVar[str]
    """The kind of event that a log begins with."""

    def __init__(self, trusted: Anchor | None = None) -> None:
        self._pinned = trusted if isinstance(trusted, PublicKey) else None
        self._trusted = trusted
        self.signer = self._pinned
        self.segments = 0
        self.first = self.head = GENESIS
        self.log = ""
        self.tree = MerkleTree()
        self.watched_roots: dict[int, bytes] = {}
        self._watched: set[int] = set()
        self._refused = False

    @property
    @abc.abstractmethod
    def codec(self) -> Codec[E]:
        """Reads the log's events."""

    @abc.abstractmethod
    def founder(self, event: E) -> Founder | None:
        """Whom ``event`` names as the log's first writer, None where it is no genesis."""

    @abc.abstractmethod
    def introduced(self, event: E) -> bytes | None:
        """The raw key that ``event``, the first of a segment, names as that segment's signer."""

    @abc.abstractmethod
    def writer(self, key_id: bytes) -> PublicKey | None:
        """The key with this id that the log knows, if it does; whether it may write is for
        `admit` to say."""

    @property
    @abc.abstractmethod
    def key(self) -> PublicKey | None:
        """The log's own key; before the first segment the one that is pinned, if there is one."""

    @abc.abstractmethod
    def admit(self, event: E, place: Place, index: int) -> str | None:
        """Take ``event`` as number ``index`` of the log; the reason if it cannot stand there."""

    @abc.abstractmethod
    def record(self, index: int, event: E) -> R:
        """``event`` with its place in the log."""

    def is_signed(self, segment: Segment, key: PublicKey) -> bool:
        """Whether the signature of ``segment`` is that of ``key``."""
        return segment.is_signed_by(key)

    def unread(self, data: bytes) -> E | None:
        """What to go on with in the place of an event that the codec refuses: as much of it as can
        be read, or None, to pass it over.

        Raises:
            CodecError: neither; that is what happens unless a subclass knows better.
        """
        return self.codec.decode(data)

    def pass_over(self, data: bytes, place: Place, index: int) -> str | None:
        """Take an event unread as the next one; the reason if none can stand there, else None."""
        return f"{len(data)} bytes in a segment of {place.log} cannot be read"

    @property
    def events(self) -> int:
        """Events accepted so far; also the index of the next one."""
        return self.tree.size

    def watch(self, size: int) -> None:
        """Keep the root of the tree for when it has ``size`` events; call it before it has."""
        self._watched.add(size)

    def accept(self, data: bytes, at: int = 0, examined: Examined | None = None) -> list[R]:
        """The records of the next segment ``data``, which begins at byte ``at`` of its source.

        ``examined`` is what `esper_events.examine` found of these very bytes, if it was asked.

        Raises:
            ChainError: the segment is damaged, not signed by a key of the log, out of place, or
                says what no log can say. Nothing more is accepted after that.
        """
        if self._refused:
            raise ChainError("an earlier segment was refused; nothing after it can be accepted")
        self._refused = True
        segment = self._open(data, at)
        key = self._key_of(segment, at)
        if examined is not None and examined.key != key.raw:
            examined = None
        self._check_place(segment, key, at, examined)
        records = self._read(segment, key, at, examined)
        self.signer = key
        self.log = segment.log
        self.head = segment_hash(data) if examined is None else examined.hash
        if not self.segments:
            self.first = self.head
        self.segments += 1
        self._refused = False
        return records

    def _open(self, data: bytes, at: int) -> Segment:
        try:
            return open_segment(data)
        except SegmentError as error:
            raise ChainError(str(error), self.segments, at + error.byte) from error

    def _key_of(self, segment: Segment, at: int) -> PublicKey:
        if not self.segments:
            return self._founder_of(segment, at)
        known = self.writer(segment.key_id)
        if known is not None:
            return known
        first = self._decode(segment, 0, at)
        named = None if first is None else self.introduced(first)
        if named is None:
            return self._own_key()
        return self._public(named, at + segment.event_byte(0), self.events)

    def _own_key(self) -> PublicKey:
        if self.key is None:
            raise ChainError("the log has no key that may write any more", self.segments)
        return self.key

    def _founder_of(self, segment: Segment, at: int) -> PublicKey:
        if self._pinned is not None and not self._is_certified(segment, self._pinned):
            return self._pinned
        first = self._decode(segment, 0, at)
        founder = None if first is None else self.founder(first)
        if founder is None:
            raise ChainError(f"the log does not begin with {self.genesis}", 0, at, 0)
        byte = at + segment.event_byte(0)
        key = self._public(founder.key, byte, 0)
        reason = self._distrust(founder, key)
        if reason is not None:
            raise ChainError(reason, 0, byte, 0)
        return key

    def _public(self, raw: bytes, byte: int, index: int) -> PublicKey:
        try:
            return PublicKey(raw)
        except PublicKeyError as error:
            raise ChainError(str(error), self.segments, byte, index) from error

    def _is_certified(self, segment: Segment, trusted: PublicKey) -> bool:
        """Whether the genesis leaves it to a certificate to say whether its signer is trusted."""
        if segment.key_id == trusted.id:
            return False
        try:
            first = self._decode(segment, 0, 0)
        except ChainError:
            return False
        founder = None if first is None else self.founder(first)
        return founder is not None and founder.certificate is not UNSET

    def _distrust(self, founder: Founder, key: PublicKey) -> str | None:
        """Why ``key`` is not the one that is trusted, nor vouched for by it; its certificate is
        checked when the event is admitted."""
        if self._trusted is None or self._trusted.vouches_for(key):
            return None
        wanted = self._trusted.fingerprint
        if founder.certificate is UNSET:
            return f"the trainer's key is {key.fingerprint}, wanted {wanted}"
        try:
            root = PublicKey(founder.certificate.root)
        except PublicKeyError as error:
            return f"the certificate names no root: {error}"
        if self._trusted.vouches_for(root):
            return None
        return (
            f"the trainer's key is {key.fingerprint}, certified by the root {root.fingerprint}, "
            f"wanted {wanted}"
        )

    def _check_place(
        self, segment: Segment, key: PublicKey, at: int, examined: Examined | None
    ) -> None:
        reason = None
        if segment.key_id != key.id:
            reason = f"signed by key {segment.key_id.hex()}, wanted {key.id.hex()}"
        elif not (self.is_signed(segment, key) if examined is None else examined.signed):
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
        if reason is not None:
            raise ChainError(reason, self.segments, at)

    def _read(
        self, segment: Segment, key: PublicKey, at: int, examined: Examined | None
    ) -> list[R]:
        place = Place(segment.log, key, segment.epoch, segment.first_index, segment.previous)
        records = []
        for index, event in enumerate(self._events_of(segment, at), self.events):
            position = index - self.events
            if event is None:
                reason = self.pass_over(segment.events[position], place, index)
            else:
                reason = self.admit(event, place, index)
                records.append(self.record(index, event))
            if reason is not None:
                raise ChainError(reason, self.segments, at + segment.event_byte(position), index)
        found = None if examined is None else examined.leaves
        self._grow(leaf_hashes(segment.events) if found is None else found)
        return records

    def _events_of(self, segment: Segment, at: int) -> Iterable[E | None]:
        """All at once; where one of them is none, one by one, to name the first fault there is."""
        try:
            return self.codec.decode_all(segment.events)
        except CodecError:
            return (self._decode(segment, number, at) for number in range(len(segment.events)))

    def _grow(self, leaves: Sequence[bytes]) -> None:
        start, done = self.events, 0
        due = sorted(size for size in self._watched if start < size <= start + len(leaves))
        for size in due:
            self.tree.extend_hashes(leaves[done : size - start])
            self.watched_roots[size] = self.tree.root()
            done = size - start
        self.tree.extend_hashes(leaves[done:])
        self._watched.difference_update(due)

    def _decode(self, segment: Segment, position: int, at: int) -> E | None:
        data = segment.events[position]
        try:
            return self.codec.decode(data)
        except CodecError:
            pass
        try:
            return self.unread(data)
        except CodecError as error:
            byte = at + segment.event_byte(position)
            index = segment.first_index + position
            raise ChainError(str(error), self.segments, byte, index) from error
