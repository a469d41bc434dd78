"""Who has the run: telling another writer's segment from a copy that is damaged or behind."""

from __future__ import annotations

from itertools import islice

from esper.log.errors import FencedError
from esper.log.store import Store
from esper_events.chain import ChainVerifier
from esper_events.errors import ChainError
from esper_events.events import RunTakenOver
from esper_events.segment import open_segment


def fork_of(journal: Store, stream: Store) -> int:
    """How many segments both hold alike from the first on; each names the hash of the one before,
    so two that are equal follow equal ones."""
    low, high = 0, min(journal.count, stream.count)
    while low < high:
        middle = (low + high) // 2
        if next(journal.read(middle)) == next(stream.read(middle)):
            low = middle + 1
        else:
            high = middle
    return low


def fence_between(journal: Store, stream: Store) -> FencedError | None:
    """What fences the writer of ``journal`` off: a valid segment of the run in ``stream`` that the
    journal does not have in its place. None where what differs is no such segment."""
    fork = fork_of(journal, stream)
    if fork == stream.count:
        return None
    chain = ChainVerifier()
    segment = next(stream.read(fork))
    try:
        for before in islice(journal.read(), fork):
            chain.accept(before)
        first = chain.accept(segment)[0]
    except ChainError:
        return None
    epoch = open_segment(segment).epoch
    if isinstance(first.event, RunTakenOver):
        holder = first.event.holder
        told = f"was taken over by {holder} in lease epoch {epoch}"
    else:
        holder = ""
        told = (
            f"is continued by another process in lease epoch {epoch}, or the journal lost its end"
        )
    return FencedError(
        f"run {chain.log} {told}: from event {first.index} on its history is not this journal's; "
        "what the journal holds from there on was never acknowledged and is no part of the run",
        epoch,
        holder,
        first.index,
        fork,
    )
