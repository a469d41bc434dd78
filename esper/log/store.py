"""What a place that keeps signed segments must do; every store passes one contract test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Store(Protocol):
    """Segments in order, append only, one writer.

    A segment is opaque bytes here; its number is its position, from 0.
    """

    @property
    def count(self) -> int:
        """Number of segments held, as far as this writer knows."""

    def append(self, position: int, segment: bytes) -> None:
        """Keep ``segment`` as number ``position``; it is durable when this returns.

        Raises ``ConflictError`` when ``position`` is not ``count``, or when the store already
        holds another segment there.
        """

    def read(self, start: int = 0) -> Iterator[bytes]:
        """The segments from number ``start`` on, without a gap."""

    def close(self) -> None:
        """Let go of files, locks and connections; safe to call twice."""


class RemoteStore(Store, Protocol):
    """A store behind a connection that can be lost while nothing is being written."""

    def check(self) -> None:
        """Raise ``StoreUnavailableError`` when the connection is known to be gone."""

    def refresh(self) -> int:
        """The number of segments that are there now, which is ``count`` from then on."""

    def beside(self, log: str, create: bool) -> SharedStore:
        """The store of a shared log over the same connection; raises as
        ``SharedSource.connect``."""


class StoreSource(Protocol):
    """Where a replica gets its store from, again and again when the connection is lost."""

    @property
    def name(self) -> str:
        """For people and for events; without credentials."""

    def connect(self) -> RemoteStore:
        """A fresh store; raises ``LogError`` when there is none to be had now."""

    def close(self) -> None:
        """The run needs the source no more."""


class SharedStore(RemoteStore, Protocol):
    """A store that others append to as well."""


class SharedSource(Protocol):
    """Where a shared log gets its store from."""

    @property
    def name(self) -> str:
        """For people; without credentials."""

    def connect(self, create: bool) -> SharedStore:
        """A fresh store; raises ``MissingStreamError`` where there is none and none is to be
        created, ``LogError`` when there is none to be had now."""

    def close(self) -> None:
        """The log is needed no more."""
