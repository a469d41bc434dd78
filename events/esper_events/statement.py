"""What a root key signs, as bytes: of all spellings of a statement only the canonical one."""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from esper_events.errors import EsperEventsError

S = TypeVar("S", bound=msgspec.Struct)

_encoder = msgspec.msgpack.Encoder(order="deterministic")


def encode_statement(statement: msgspec.Struct) -> bytes:
    """Its canonical bytes, as they stand in an event."""
    return _encoder.encode(statement)


def unsigned_bytes(statement: msgspec.Struct) -> bytes:
    """The canonical bytes of a statement with an empty ``signature``: what that is over, behind the
    prefix of its kind."""
    return _encoder.encode(msgspec.structs.replace(statement, signature=b""))


class StatementReader(Generic[S]):
    """Reads statements of one kind, called ``name``, of at most ``limit`` bytes; what is none
    raises ``error``."""

    def __init__(self, kind: type[S], name: str, limit: int, error: type[EsperEventsError]) -> None:
        self._decoder = msgspec.msgpack.Decoder(kind, strict=True)
        self._name = name
        self._limit = limit
        self._error = error

    def decode(self, data: bytes) -> S:
        """The statement whose canonical bytes are ``data``, unchecked."""
        if len(data) > self._limit:
            raise self._error(f"a {self._name} over {self._limit} bytes")
        try:
            statement = self._decoder.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise self._error(f"not a {self._name}: {error}") from error
        if _encoder.encode(statement) != data:
            raise self._error(f"not the canonical encoding of its {self._name}")
        return statement
