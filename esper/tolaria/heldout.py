"""Which batches which gate may look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MINIMUM = 6
"""Fewer held-out batches cannot be split three ways with two pairs in each part."""


class HeldOutError(Exception):
    """The held-out batches cannot serve the gates."""


@dataclass(frozen=True)
class HeldOut:
    """Batches apart: ``watch`` for plateau and tournament, ``shadow`` for the gate before
    grafting, ``confirm`` for the fork gate, which neither of the others has seen."""

    watch: tuple[Any, ...]
    shadow: tuple[Any, ...]
    confirm: tuple[Any, ...]
    origin: str


def split_held_out(probe: Sequence[Any], confirm: Sequence[Any] | None, origin: str) -> HeldOut:
    """Deal the probe batches out, in turn, to the gates.

    Raises:
        HeldOutError: there are too few batches.
    """
    needed = 4 if confirm is not None else MINIMUM
    if len(probe) < needed or (confirm is not None and len(confirm) < 2):
        got = f"{len(probe)} probe" + (
            f" and {len(confirm)} confirm" if confirm is not None else ""
        )
        raise HeldOutError(
            f"got {got} batches, wanted at least {needed} probe batches"
            + (" and 2 confirm batches" if confirm is not None else "")
            + ": split the held-out data into smaller batches"
        )
    if confirm is not None:
        return HeldOut(tuple(probe[0::2]), tuple(probe[1::2]), tuple(confirm), origin)
    return HeldOut(tuple(probe[0::3]), tuple(probe[1::3]), tuple(probe[2::3]), origin)


class Reserve:
    """Training batches that stand in for held-out ones, as soon as there are ``size`` of them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._batches: list[Any] = []

    def take(self, batch: Any) -> HeldOut | None:
        """Keep one more back; all of them, dealt out, with the last."""
        self._batches.append(batch)
        if len(self._batches) < self._size:
            return None
        return split_held_out(self._batches, None, "reserved training batches")
