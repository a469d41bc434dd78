"""Where events stand in a log: what the segment that holds them says of itself."""

from __future__ import annotations

import msgspec

from esper_events.keys import PublicKey


class Place(msgspec.Struct, frozen=True):
    """A segment of ``log`` in lease ``epoch``, signed by ``signer``, whose first event has the
    index ``first_index``; ``previous`` is the SHA-256 of the segment before."""

    log: str
    signer: PublicKey
    epoch: int
    first_index: int
    previous: bytes
