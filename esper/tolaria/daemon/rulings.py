"""What a daemon may do with a job: decided by the registry alone, each time anew."""

from __future__ import annotations

import time
from collections.abc import Sequence

from esper.log.shared_log import Decide
from esper.projections.registry import REGISTRY, JobState, RegistryState
from esper_events.registry import (
    JobParked,
    LeaseExpired,
    LeaseGranted,
    RegistryEvent,
    RegistryRecord,
)


class Reading:
    """The registry's records folded, each of them once."""

    def __init__(self) -> None:
        self._state = REGISTRY.initial

    def of(self, records: Sequence[RegistryRecord]) -> RegistryState:
        """The state that ``records`` tell; they are those of the last call, and more."""
        self._state = REGISTRY.fold_all(records[self._state.records :], self._state)
        return self._state


def claim(reading: Reading, seen: JobState, job: str, holder: str) -> Decide:
    """Give ``job`` to ``holder``, unless anything has happened to it since it was ``seen``.

    A lease of somebody else's ends by that; one that was the last of the job's attempts parks it.
    """

    def decide(records: Sequence[RegistryRecord]) -> list[RegistryEvent]:
        state = reading.of(records).jobs.get(job)
        if state != seen:
            return []
        now = time.time()
        grant = LeaseGranted(
            time=now, job=job, epoch=seen.epoch + 1, holder=holder, log=seen.log or job
        )
        if seen.state != "leased":
            return [grant]
        expiry = LeaseExpired(time=now, job=job, epoch=seen.epoch, holder=seen.holder)
        expired, attempts = seen.expired + 1, seen.submitted.attempts
        if attempts and expired >= attempts:
            reason = f"{expired} of its leases have expired, at most {attempts} were wanted"
            return [expiry, JobParked(time=now, job=job, epoch=seen.epoch, reason=reason)]
        return [expiry, grant]

    return decide


def if_held(reading: Reading, job: str, epoch: int, event: RegistryEvent) -> Decide:
    """Write ``event`` unless the lease ``epoch`` of ``job`` is over."""

    def decide(records: Sequence[RegistryRecord]) -> list[RegistryEvent]:
        state = reading.of(records).jobs.get(job)
        held = state is not None and bool(state.holder) and state.epoch == epoch
        return [event] if held else []

    return decide
