"""What a log's first event says of the key that writes it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from msgspec import UNSET, UnsetType

from esper_events.certificate import Certificate
from esper_events.events import RunStarted
from esper_events.keys import PublicKey


@dataclass(frozen=True)
class Credentials:
    """``trainer_key``, raw, and, where they stand, a root key's certificate for it and the digest
    of the key that comes after it; as the fields of the same names in `RunStarted`."""

    trainer_key: bytes
    certificate: Certificate | UnsetType = UNSET
    next_key: str | UnsetType = UNSET

    @classmethod
    def of(cls, key: PublicKey) -> Credentials:
        """A key for which nobody vouches, and after which none comes."""
        return cls(key.raw)

    def under(self, root: PublicKey | None) -> Credentials:
        """The same for a log that began with ``root``, or without one: that has no certificates."""
        return self if root is not None else replace(self, certificate=UNSET)

    @classmethod
    def told_by(cls, event: RunStarted) -> Credentials:
        """Those that a log began with."""
        return cls(event.trainer_key, event.certificate, event.next_key)
