"""Are the runs that a registry names still on its server, and are they what they were?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from esper.log.errors import MissingStreamError, StoreError, StoreUnavailableError
from esper.log.shared_log import SharedLog
from esper.log.store import SharedStore
from esper_events.chain import ChainVerifier
from esper_events.codec import decode_event
from esper_events.errors import ChainError, CodecError, SegmentError
from esper_events.events import Event, RunEnded
from esper_events.registered import check_registered, watch_heads
from esper_events.registry_rules import RegisteredRun
from esper_events.segment import open_segment


@dataclass(frozen=True)
class Found:
    """What the server holds of a registered run: ``events`` events, the last of which may tell its
    ``outcome`` ("" while it has none). ``fault`` is what is wrong with that, "" where nothing is;
    ``missing`` tells that there is nothing at all."""

    run: RegisteredRun
    events: int = 0
    outcome: str = ""
    fault: str = ""
    missing: bool = False


def look(registry: SharedLog, run: RegisteredRun) -> Found:
    """Whether the copy of ``run`` is there, and how it ends; no byte is verified.

    Raises ``StoreUnavailableError``.
    """
    return _with_copy(registry, run, _end_of)


def audit(registry: SharedLog, run: RegisteredRun) -> Found:
    """Every byte of the copy of ``run``, held to what the registry has seen of it.

    Raises ``StoreUnavailableError``.
    """
    return _with_copy(registry, run, _verified)


def _with_copy(
    registry: SharedLog, run: RegisteredRun, read: Callable[[RegisteredRun, SharedStore], Found]
) -> Found:
    try:
        copy = registry.copy_of(run.log)
        if copy.count:
            return read(run, copy)
    except MissingStreamError:
        pass
    except StoreUnavailableError:
        raise
    except (StoreError, ChainError, SegmentError, CodecError) as error:
        return Found(run, fault=str(error))
    return Found(run, fault=f"the server has no copy of it any more: {_loss(run)}", missing=True)


def _loss(run: RegisteredRun) -> str:
    seen = f"{run.events} events were there" if run.events else "it had begun"
    return f"{seen} when that was last recorded (`esper repair` restores it from the run's journal)"


def _end_of(run: RegisteredRun, copy: SharedStore) -> Found:
    last = open_segment(next(copy.read(copy.count - 1)))
    events = last.first_index + len(last.events)
    return Found(run, events, _outcome(decode_event(last.events[-1])))


def _verified(run: RegisteredRun, copy: SharedStore) -> Found:
    verifier, newest = ChainVerifier(), None
    watch_heads(run, verifier)
    for segment in copy.read():
        newest = verifier.accept(segment)[-1].event
    check_registered(run, verifier)
    return Found(run, verifier.events, _outcome(newest))


def _outcome(last: Event | None) -> str:
    return last.outcome if isinstance(last, RunEnded) else ""
