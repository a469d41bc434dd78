"""What a run was seen to be while it trained; read where there is no torch, too."""

from __future__ import annotations

import msgspec


class LiveDigests(msgspec.Struct):
    """What a run was seen to be while it trained.

    ``digests`` holds, for each projection, the digest before the first record and after each.
    ``compared`` counts the steps after which the folded lattice was compared with the running
    one, ``differences`` names those at which they were not the same.
    """

    digests: dict[str, list[str]]
    steps: int = 0
    compared: int = 0
    differences: list[int] = []

    @property
    def records(self) -> int:
        """Number of records that were folded."""
        return len(self.digests["lattice"]) - 1
