"""How a training process tells its daemon how far it has come."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from esper.tolaria.daemon.orders import PROGRESS, Progress, put
from esper.tolaria.observer import Part, SeedRow
from esper_events.events import BreakerChanged, Record

_EVERY_SECONDS = 0.5
_logger = logging.getLogger("esper.tolaria")


class ProgressFile:
    """An observer that keeps the latest figures in a file of ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / PROGRESS
        self._due = 0.0
        self._breakers: dict[str, str] = {}

    def part(self, name: Part, steps: int) -> None:
        """Nothing: a job has one training."""

    def resumed(self, step: int) -> None:
        """Nothing: the next figures tell where it is."""

    def progress(self, step: int, steps: int, loss: float, accuracy: float | None) -> None:
        """Write the figures down, now and then."""
        now = time.monotonic()
        if now < self._due and step < steps:
            return
        self._due = now + _EVERY_SECONDS
        told = Progress(
            step=step, steps=steps, loss=loss, accuracy=accuracy, breakers=self._breakers
        )
        try:
            put(self._path, told)
        except OSError as error:
            _logger.warning("how far the job has come cannot be told: %s", error)

    def event(self, record: Record) -> None:
        """Remember the breakers that are not closed."""
        event = record.event
        if isinstance(event, BreakerChanged):
            self._breakers.pop(event.breaker, None)
            if event.state != "closed":
                self._breakers[event.breaker] = event.state

    def seeds(self, rows: Sequence[SeedRow]) -> None:
        """Nothing: the run's log has them."""
