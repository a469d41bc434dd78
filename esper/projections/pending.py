"""Decisions that a log has taken and not yet settled, as several projections follow them."""

from __future__ import annotations

from esper.projections.lattice import OpenDecision, ProjectionError, decision_of
from esper_events.events import TransitionDecided

Pending = dict[int, OpenDecision]
"""Open decisions by number."""


def decide(pending: Pending, event: TransitionDecided) -> Pending:
    """The decisions that are open after ``event``.

    Raises:
        ProjectionError: one of its number is open already.
    """
    if event.decision in pending:
        raise ProjectionError(f"decision {event.decision} was made twice")
    return {**pending, event.decision: decision_of(event)}


def settle(pending: Pending, number: int) -> tuple[OpenDecision, Pending]:
    """The open decision ``number``, and the others.

    Raises:
        ProjectionError: it is not open.
    """
    if number not in pending:
        raise ProjectionError(f"decision {number} is settled, but it is not open")
    return pending[number], {key: entry for key, entry in pending.items() if key != number}
