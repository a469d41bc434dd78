"""The objects of one run on a NATS server: a bucket of JetStream's object store, by digest."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

from nats.js.api import ObjectInfo, ObjectMeta, ObjectMetaOptions, ObjectStoreConfig, StorageType
from nats.js.object_store import ObjectStore

from esper.log.connection import Connection
from esper.log.errors import RefusedError, StoreError
from esper.log.stream import stream_name
from esper_events.files import whole_file

_NOT_FOUND = 404
_CHUNK_BYTES = 512 << 10
"""Of an object in one message: each is one sync of the server's disk."""
_SLOWEST = 1 << 20
"""Bytes a second that an object makes at least, or it is given up."""


class ObjectBucket:
    """What events name by SHA-256, under that name; the bucket is created when it is missing.

    Raises ``StoreUnavailableError`` when the server does not answer, ``StoreError`` when it
    refuses.
    """

    def __init__(self, connection: Connection, log: str) -> None:
        self._connection = connection
        self._bucket = stream_name(log)
        self._stream = f"OBJ_{self._bucket}"
        self._store = self._open()

    def _open(self) -> ObjectStore:
        js = self._connection.js
        try:
            self._connection.call(lambda: js.stream_info(self._stream))
        except RefusedError as error:
            if error.code != _NOT_FOUND:
                raise
            config = ObjectStoreConfig(storage=StorageType.FILE)
            self._connection.call(lambda: js.create_object_store(self._bucket, config))
        return ObjectStore(self._bucket, self._stream, js)

    def digests(self) -> set[str]:
        """The digests in hex of the objects that are here."""
        js, every = self._connection.js, self._subject("M", ">")
        info = self._connection.call(lambda: js.stream_info(self._stream, every))
        subjects = (info.state.subjects or {}).keys()
        return {
            base64.urlsafe_b64decode(subject.rpartition(".")[2]).decode() for subject in subjects
        }

    def put(self, digest: str, path: Path) -> None:
        """Copy the file ``path``, whose SHA-256 in hex is ``digest``; raises ``OSError`` too."""
        chunk = min(_CHUNK_BYTES, self._connection.max_payload)
        options = ObjectMetaOptions(max_chunk_size=chunk)
        limit = self._connection.timeout + path.stat().st_size / _SLOWEST

        async def send() -> ObjectInfo:
            with path.open("rb") as file:
                return await self._store.put(digest, file, ObjectMeta(options=options))

        info = self._connection.call(send, limit)
        if _in_hex(info) != digest:
            self.delete(digest)
            raise StoreError(f"{path} is not the file that was to be copied")

    def fetch(self, digest: str, path: Path) -> bool:
        """Write the object to ``path``, durably and whole; whether it is here.

        Raises ``StoreError`` for one that is damaged, and ``OSError``.
        """
        try:
            info = self._connection.call(lambda: self._store.get_info(digest))
        except RefusedError as error:
            if error.code != _NOT_FOUND:
                raise
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, replace=True) as file:
            found = hashlib.sha256()
            for chunk in self._chunks(info):
                found.update(chunk)
                file.write(chunk)
            if found.hexdigest() != digest:
                raise StoreError(
                    f"{self._connection.name}: the object {digest[:12]} is damaged there"
                )
        return True

    def _chunks(self, info: ObjectInfo) -> Iterator[bytes]:
        """By one request for each: a push consumer of nats-py may lose some when it is slow."""
        js, subject = self._connection.js, self._subject("C", info.nuid or "")
        seq = got = 0
        while got < (info.size or 0):
            after = seq + 1
            message = self._connection.call(
                lambda after=after: js.get_msg(  # type: ignore[misc]
                    self._stream, after, subject, direct=True, next=True
                )
            )
            if not message.data or message.seq is None:
                raise StoreError(f"{self._connection.name}: an object's chunk is empty")
            seq, got = message.seq, got + len(message.data)
            yield message.data

    def delete(self, digest: str) -> None:
        """Remove the object, with its name, if it is there."""
        js, name = self._connection.js, base64.urlsafe_b64encode(digest.encode()).decode()
        try:
            self._connection.call(lambda: self._store.delete(digest))
        except RefusedError as error:
            if error.code != _NOT_FOUND:
                raise
        subject = self._subject("M", name)
        self._connection.call(lambda: js.purge_stream(self._stream, subject=subject))

    def _subject(self, kind: str, what: str) -> str:
        return f"$O.{self._bucket}.{kind}.{what}"


def _in_hex(info: ObjectInfo) -> str:
    return base64.urlsafe_b64decode((info.digest or "").removeprefix("SHA-256=")).hex()
