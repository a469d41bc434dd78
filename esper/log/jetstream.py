"""The copy of a log on a NATS server: one stream for a run, one message for a segment."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator

from nats.js.api import Header, PubAck, RawStreamMsg, StreamInfo

from esper.log import stream
from esper.log.bucket import ObjectBucket
from esper.log.connection import Connection
from esper.log.endpoint import Endpoint
from esper.log.errors import (
    ConflictError,
    DamagedStoreError,
    MissingStreamError,
    RefusedError,
    StoreError,
    StoreUnavailableError,
)

_WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
_NOT_FOUND = 404
_READ_AHEAD = 32


class JetStreamStore:
    """Segment ``n`` is the message with sequence ``n + 1`` of the log's stream.

    ``server`` says where it is, or is a connection to it, which stays its owner's. The stream is
    created when it is missing, unless ``create`` is False, and its settings are proved by asking
    the server. Each publish names the sequence it expects to follow, so a second writer is refused;
    an outcome that stayed unknown is resolved by comparing the hash of what the server holds.

    Raises ``StoreUnavailableError`` when the server does not answer within ``timeout`` seconds,
    ``StoreError`` when it refuses, ``MissingStreamError`` when nothing may be created and there is
    none, ``ConflictError`` for a second writer.
    """

    def __init__(
        self,
        server: Endpoint | Connection,
        log: str,
        *,
        timeout: float = 5.0,
        replicas: int = 1,
        create: bool = True,
    ) -> None:
        self.log = log
        self._stream = stream.stream_name(log)
        self._subject = stream.subject(log)
        self._owned = isinstance(server, Endpoint)
        self._connection = (
            Connection(server, timeout=timeout) if isinstance(server, Endpoint) else server
        )
        self._wanted = stream.wanted_config(log, replicas)
        self._count = 0
        try:
            if create:
                self._create()
            self.refresh()
        except BaseException:
            self.close()
            raise

    def _create(self) -> None:
        js = self._connection.js
        if self._info() is None:
            self._connection.call(lambda: js.add_stream(self._wanted))

    def refresh(self) -> int:
        """The number of segments that the server holds now."""
        info = self._info()
        if info is None:
            raise MissingStreamError(f"{self._where}: there is no such stream")
        wrong = stream.differences(info.config, self._wanted)
        if wrong:
            raise StoreError(
                f"{self._where}: the stream is not safe for a log: {'; '.join(wrong)}; "
                "restore these settings or give the run another log id"
            )
        if info.state.last_seq and info.state.messages != info.state.last_seq:
            raise DamagedStoreError(
                f"{self._where}: the server lost {info.state.last_seq - info.state.messages} of "
                f"{info.state.last_seq} segments; rebuild the stream from the journal"
            )
        self._count = info.state.last_seq
        return self._count

    def _info(self) -> StreamInfo | None:
        js = self._connection.js
        try:
            return self._connection.call(lambda: js.stream_info(self._stream))
        except RefusedError as error:
            if error.code != _NOT_FOUND:
                raise
            return None

    @property
    def _where(self) -> str:
        return f"{self._connection.name}, stream {self._stream}"

    @property
    def count(self) -> int:
        """Number of segments that the server acknowledged or showed to this object."""
        return self._count

    def append(self, position: int, segment: bytes) -> None:
        """Publish the segment; see ``Store.append``. Calling again after an error is safe."""
        if position != self._count:
            raise ConflictError(f"{self._where}: got segment {position}, wanted {self._count}")
        if len(segment) > self._connection.max_payload:
            raise StoreError(
                f"{self._where}: segment {position} has {len(segment)} bytes, the server takes "
                f"{self._connection.max_payload}; raise max_payload in its configuration"
            )
        try:
            ack = self._publish(position, segment)
        except StoreUnavailableError:
            if not self._connection.lost and self._holds(position, segment):
                self._count = position + 1
                return
            raise
        except RefusedError as error:
            if error.err_code not in _WRONG_LAST_SEQUENCE:
                raise
            self._settle_conflict(position, segment)
            return
        if ack.seq != position + 1 or ack.stream != self._stream:
            raise StoreError(
                f"{self._where}: segment {position} was stored as sequence {ack.seq} of "
                f"{ack.stream}, wanted sequence {position + 1}"
            )
        self._count = position + 1

    def _publish(self, position: int, segment: bytes) -> PubAck:
        headers = {
            Header.EXPECTED_LAST_SEQUENCE.value: str(position),
            Header.EXPECTED_STREAM.value: self._stream,
        }
        js = self._connection.js
        timeout = self._connection.timeout
        return self._connection.call(
            lambda: js.publish(self._subject, segment, timeout=timeout, headers=headers)
        )

    def _settle_conflict(self, position: int, segment: bytes) -> None:
        """The place is taken: by our own earlier try, or by somebody else."""
        if not self._holds(position, segment):
            raise ConflictError(
                f"{self._where}: the server does not have our segment {position} "
                f"(sha256 {_digest(segment)[:16]}) next: another writer has "
                "this run, or the store was replaced; this writer stops sending"
            )
        self._count = position + 1

    def _holds(self, position: int, segment: bytes) -> bool:
        held = self._get(position)
        return held is not None and _digest(held) == _digest(segment)

    def _get(self, position: int) -> bytes | None:
        """The segment as the stream's leader has it: a direct get may meet a lagging replica."""
        js = self._connection.js
        try:
            message = self._connection.call(lambda: js.get_msg(self._stream, seq=position + 1))
        except RefusedError as error:
            if error.code != _NOT_FOUND:
                raise
            return None
        return self._checked(message, position)

    def _checked(self, message: RawStreamMsg, position: int) -> bytes:
        if message.seq != position + 1 or message.subject != self._subject or not message.data:
            raise DamagedStoreError(
                f"{self._where}: asked for sequence {position + 1}, got sequence {message.seq} "
                f"on {message.subject!r}"
            )
        return message.data

    def read(self, start: int = 0) -> Iterator[bytes]:
        """The segments from ``start`` to ``count``; raises ``StoreError`` at a gap."""
        for first in range(start, self._count, _READ_AHEAD):
            yield from self._read_chunk(range(first, min(first + _READ_AHEAD, self._count)))

    def _read_chunk(self, positions: range) -> list[bytes]:
        js = self._connection.js

        async def gets() -> list[RawStreamMsg]:
            return await asyncio.gather(
                *(js.get_msg(self._stream, seq=p + 1, direct=True) for p in positions)
            )

        try:
            messages = self._connection.call(gets)
        except RefusedError as error:
            if error.code != _NOT_FOUND:
                raise
            return [self._get_or_gap(position) for position in positions]
        return [self._checked(m, p) for m, p in zip(messages, positions, strict=True)]

    def _get_or_gap(self, position: int) -> bytes:
        segment = self._get(position)
        if segment is None:
            raise DamagedStoreError(
                f"{self._where}: segment {position} is missing; rebuild the stream from the journal"
            )
        return segment

    def check(self) -> None:
        """Raise ``StoreUnavailableError`` when the connection is known to be gone."""
        if self._connection.lost:
            raise StoreUnavailableError(f"{self._connection.name}: the connection was lost")

    def beside(self, log: str, create: bool) -> JetStreamStore:
        """Another log on the same server, over this store's connection."""
        return JetStreamStore(self._connection, log, create=create)

    def objects(self) -> ObjectBucket:
        """The objects of the log on the same server, over this store's connection."""
        return ObjectBucket(self._connection, self.log)

    def close(self) -> None:
        """Close the connection, where it is this store's own."""
        if self._owned:
            self._connection.close()


def _digest(segment: bytes) -> str:
    return hashlib.sha256(segment).hexdigest()
