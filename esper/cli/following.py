"""Following a run that is being trained."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from esper_events.events import Record
    from esper_events.follow import LogFollower

_PAUSE = 0.2
"""Seconds between two looks at the journal."""

follow_option = click.option(
    "-f", "--follow", is_flag=True, help="Go on as the run does, until it ends or Ctrl-C."
)


def check_followed(path: Path) -> None:
    """Raises ``UsageError`` where ``path`` cannot grow."""
    if not path.is_dir():
        raise click.UsageError(f"--follow: {path} is no run's directory, and does not grow")


def arrivals(log: LogFollower) -> Iterator[Iterator[Record]]:
    """What has come since the last look, at each look that finds something, until the run ends.

    Each is to be read to its end. Raises what `LogFollower.records` does.
    """
    while not log.verifier.ended:
        if log.has_more():
            yield log.records()
        else:
            time.sleep(_PAUSE)
