"""Whose key is the trainer's, from which place of a log on."""

from __future__ import annotations

from dataclasses import dataclass

from esper_events.certificate import Certificate
from esper_events.keys import PublicKey


@dataclass(frozen=True, slots=True)
class Tenure:
    """``key`` is the trainer's from event ``since`` on, which named it and, where they stand, the
    root's ``certificate`` for it and the digest of the key that comes after it, ``next_key``."""

    key: PublicKey
    since: int
    certificate: Certificate | None
    next_key: str | None
