"""``esper status``: which jobs there are, who has them, and how far they have come."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from esper.cli.jobs import job_of, linked
from esper.cli.options import nats_option
from esper.cli.table import aligned
from esper_events.terminal import printable

if TYPE_CHECKING:
    from esper.log.queue import JobQueue
    from esper.projections.registry import JobState
    from esper.tolaria.daemon.orders import Progress

_COLUMNS = ("JOB", "STATE", "EPOCH", "HOLDER", "STEP", "")


@click.command(
    short_help="List the jobs of a server.", epilog="Example:  esper status digits-1f2e3d4c"
)
@click.argument("job", required=False)
@nats_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def status(job: str | None, nats: str | None, as_json: bool) -> None:
    """List the jobs that were submitted to a server, oldest first, or tell of one.

    A job waits, is leased by a daemon, has ended, or is parked (it failed, or broke a limit: the
    reason is shown) or cancelled. The run's log has the name of the job.
    """
    with linked(nats) as link:
        state = link.state()
        chosen = state.jobs if job is None else {job: job_of(state, job)}
        rows = [_row(name, each, link.queue) for name, each in chosen.items()]
    if as_json:
        click.echo(json.dumps({"jobs": rows}))
        return
    if not rows:
        click.echo("no jobs")
        return
    for line in aligned([_COLUMNS, *(_cells(row) for row in rows)]):
        click.echo(printable(line))


def _row(name: str, job: JobState, queue: JobQueue) -> dict[str, object]:
    told = _progress(queue, name) if job.epoch >= 0 else None
    return {
        "job": name,
        "state": job.state,
        "epoch": None if job.epoch < 0 else job.epoch,
        "holder": job.holder or None,
        "run": job.log or None,
        "expired": job.expired,
        "outcome": job.outcome or None,
        # What was told of an earlier lease is no reason for how things stand now.
        "reason": "" if job.state == "leased" or job.outcome == "completed" else job.reason,
        "step": None if told is None else told.step,
        "steps": None if told is None else told.steps,
        "loss": None if told is None else told.loss,
        "accuracy": None if told is None else told.accuracy,
        "breakers": {} if told is None else told.breakers,
    }


def _progress(queue: JobQueue, job: str) -> Progress | None:
    """What the job's daemon told last."""
    import msgspec

    from esper.tolaria.daemon.orders import Progress

    told = queue.told(job)
    try:
        return None if told is None else msgspec.json.decode(told, type=Progress)
    except msgspec.MsgspecError:
        return None  # Of a daemon of another version.


def _cells(row: dict[str, object]) -> tuple[str, ...]:
    step = "" if row["step"] is None else f"{row['step']}/{row['steps']}"
    breakers = row["breakers"]
    notes = [str(row["outcome"] or ""), str(row["reason"])]
    if isinstance(breakers, dict):
        notes += [f"circuit breaker {name} {state}" for name, state in breakers.items()]
    epoch = "" if row["epoch"] is None else str(row["epoch"])
    note = "; ".join(filter(None, notes))
    return (str(row["job"]), str(row["state"]), epoch, str(row["holder"] or ""), step, note)
