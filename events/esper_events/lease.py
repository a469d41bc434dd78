"""Lease epochs: each writer of a run has one, and who comes after takes the run over in a higher.

A segment of a higher epoch begins with `RunTakenOver`, which names the segment that it follows: the
fork point. What the writer before wrote behind that is no part of the log.
"""

from __future__ import annotations

from esper_events.events import Event, RunTakenOver
from esper_events.place import Place


class Lease:
    """Follows the epochs of one log. Attribute: ``epoch``, of the last segment; None before it."""

    def __init__(self) -> None:
        self.epoch: int | None = None

    def admit(self, event: Event | None, place: Place, index: int) -> str | None:
        """The reason why ``event``, None for one of a kind unknown here, cannot stand at ``index``,
        a place in ``place``, else None."""
        reason = None
        if isinstance(event, RunTakenOver):
            first = index == place.first_index
            reason = self._take_over(event, place) if first else "run.taken_over within a segment"
        elif self.epoch is not None and place.epoch != self.epoch:
            reason = (
                f"lease epoch {place.epoch} after epoch {self.epoch}"
                if place.epoch < self.epoch
                else f"lease epoch {place.epoch} begins without run.taken_over"
            )
        self.epoch = place.epoch
        return reason

    def _take_over(self, event: RunTakenOver, place: Place) -> str | None:
        if self.epoch is None or place.epoch <= self.epoch:
            return (
                f"the run is taken over in lease epoch {place.epoch}, after one of epoch "
                f"{self.epoch}: an epoch begins once"
            )
        if event.epoch != place.epoch:
            return f"run.taken_over is of lease epoch {event.epoch}, its segment of {place.epoch}"
        if event.after != place.previous.hex():
            return (
                f"run.taken_over names the segment {event.after} as the one before it, which is "
                f"{place.previous.hex()}"
            )
        return None
