"""Whether an event can stand in a log where it is."""

from __future__ import annotations

from esper_events.authority import Authority
from esper_events.events import Event
from esper_events.lease import Lease
from esper_events.place import Place
from esper_events.rules import Rules


class Admission:
    """Follows one log from its first event: what it may say, its lease epochs, and who may write.

    Whoever appends and whoever audits ask the same.
    """

    def __init__(self) -> None:
        self.rules = Rules()
        self.lease = Lease()
        self.authority = Authority()

    def admit(self, event: Event, place: Place, index: int) -> str | None:
        """Take ``event`` as the next one, the log's event number ``index``, in the segment of
        ``place``; the reason if it cannot stand there, else None."""
        return (
            self.rules.admit(event)
            or self.lease.admit(event, place, index)
            or self.authority.admit(event, place, index)
        )

    def pass_over(self, place: Place, index: int) -> str | None:
        """Take an event of a kind unknown here as number ``index``; the reason if none can stand
        there, else None."""
        self.authority.distrust.note(place, index)
        return self.lease.admit(None, place, index)
