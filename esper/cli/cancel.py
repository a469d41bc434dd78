"""``esper cancel``: a job is not wanted any more."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from esper.cli.failures import UserError
from esper.cli.jobs import job_of, linked
from esper.cli.options import nats_option

if TYPE_CHECKING:
    from esper_events.registry import RegistryEvent, RegistryRecord


@click.command(
    short_help="Take a job back.", epilog="Example:  esper cancel digits-1f2e3d4c --reason typo"
)
@click.argument("job")
@click.option("--reason", default="", metavar="TEXT", help="Why; it is kept with the job.")
@nats_option
def cancel(job: str, reason: str, nats: str | None) -> None:
    """Cancel JOB: at once where it waits, at its next safe point where it trains.

    The log of a run that had begun is then closed as interrupted.
    """
    with linked(nats) as link:

        def decide(records: Sequence[RegistryRecord]) -> list[RegistryEvent]:
            from esper_events.registry import JobCancelled

            found = job_of(link.reading.of(records), job)
            if found.state in ("ended", "cancelled", "parked"):
                raise UserError(f"job {job} is {found.state} already")
            return [JobCancelled(time=time.time(), job=job, reason=reason)]

        link.registry.update(decide)
        held = link.reading.of(link.registry.records()).jobs[job].holder
    stops = f", {held} stops it at its next safe point" if held else ""
    click.echo(f"{job}: cancelled{stops}")
