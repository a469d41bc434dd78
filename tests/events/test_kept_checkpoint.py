"""Exhaustively on a small log: what its own owner cuts off or rewrites is found by every checkpoint
that was kept of more of it, and by none that was kept of less."""

from __future__ import annotations

from pathlib import Path

from esper_events.checkpoint import parse_checkpoint
from esper_events.events import Event, PlateauDetected
from esper_events.keys import SigningKey
from esper_events.verify import verify_path
from support.event_runs import Run, make_run, started

EVENTS = 9


def history(key: SigningKey, size: int, fork: int = EVENTS) -> Run:
    """A run of one event a segment, signed as whole by its owner; another one from ``fork`` on."""
    events: list[Event] = [started(key)]
    for step in range(1, size):
        events.append(PlateauDetected(time=1.0, step=step + 100 * (step >= fork), figures={}))
    return make_run(key, [(event,) for event in events])


def test_every_cut_and_every_fork_is_found_by_every_checkpoint_of_more(
    key: SigningKey, tmp_path: Path
) -> None:
    kept = {size: parse_checkpoint(history(key, size).note) for size in range(1, EVENTS + 1)}
    for left in range(1, EVENTS + 1):
        history(key, left).write(tmp_path / f"cut-{left}")
        for size, checkpoint in kept.items():
            report = verify_path(tmp_path / f"cut-{left}", kept=checkpoint)
            assert report.ok == (size <= left)
            assert report.ok or "was cut or rolled back" in report.message
    for fork in range(1, EVENTS):
        for length in (EVENTS, EVENTS + 3):
            directory = tmp_path / f"fork-{fork}-{length}"
            history(key, length, fork).write(directory)
            for size, checkpoint in kept.items():
                report = verify_path(directory, kept=checkpoint)
                assert report.ok == (size <= fork)
                assert report.ok or "are not those" in report.message
