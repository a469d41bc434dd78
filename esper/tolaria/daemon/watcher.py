"""How a training process tells its daemon how far it has come."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from esper.tolaria.daemon.orders import PROGRESS, Progress, put
from esper.tolaria.observer import Silent

_EVERY_SECONDS = 0.5
_logger = logging.getLogger("esper.tolaria")


class ProgressFile(Silent):
    """An observer that keeps the latest figures in a file of ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / PROGRESS
        self._due = 0.0
        self._breakers: dict[str, str] = {}

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

    def breakers(self, states: Mapping[str, str]) -> None:
        """Remember those that are not closed."""
        self._breakers = {name: state for name, state in states.items() if state != "closed"}
