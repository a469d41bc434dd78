"""``esper logs``: what has become of a job, from wherever it is trained."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from esper.cli.failures import NotWholeError, UserError
from esper.cli.following import follow_option
from esper.cli.jobs import job_of, linked
from esper.cli.options import nats_option
from esper_events.terminal import printable

if TYPE_CHECKING:
    from esper.projections.registry import JobState
    from esper.tolaria.daemon.link import Link
    from esper_events.events import Record

_PAUSE = 0.3
_OVER = ("ended", "parked", "cancelled")


@click.command(
    short_help="Tell the history of a job's run.", epilog="Example:  esper logs digits-1f2e3d4c -f"
)
@click.argument("job")
@follow_option
@click.option(
    "--stderr", "as_stderr", is_flag=True, help="What the training processes wrote there instead."
)
@nats_option
def logs(job: str, follow: bool, as_stderr: bool, nats: str | None) -> None:
    """Tell the history of JOB's run as `esper show` does, from the server's copy of its log.

    Each line is proven before it is shown. What the training process wrote on standard error
    lies with the daemon that started it, and is shown in that daemon's workspace alone.
    """
    with linked(nats) as link:
        state = job_of(link.state(), job)
        if as_stderr:
            _print_stderr(link, job, follow)
        else:
            _tell(link, job, state, follow, nats)
        reason = job_of(link.state(), job)
    if reason.state in ("parked", "cancelled"):
        click.echo(printable(f"job {reason.state}: {reason.reason or 'no reason given'}"))


def _tell(link: Link, job: str, state: JobState, follow: bool, nats: str | None) -> None:
    from esper.cli.story import Story
    from esper_events.errors import ChainError

    story = Story()
    try:
        for record in _records(link, job, state, follow, nats):
            line = story.tell(record)
            if line is not None:
                click.echo(line)
    except ChainError as error:
        raise NotWholeError(Path(job), error) from error


def _records(
    link: Link, job: str, state: JobState, follow: bool, nats: str | None
) -> Iterator[Record]:
    """The records of the job's run, and those that come until the job is over."""
    from esper.log.reading import ServerFollower
    from esper.log.sources import source_for
    from esper.log.workspace import Workspace

    run = link.registry.runs.get(state.log)
    source = source_for(state.log or job, Workspace(), nats)
    with closing(ServerFollower(source, None if run is None else run.trainer)) as log:
        for _ in _until_over(link, job, follow):
            while log.has_more():
                yield from log.records()
            if log.verifier.ended:
                return


def _print_stderr(link: Link, job: str, follow: bool) -> None:
    from esper.log.workspace import Workspace
    from esper.tolaria.daemon.intake import job_directory
    from esper.tolaria.daemon.orders import STDERR

    path = job_directory(Workspace(), job) / STDERR
    read = 0
    for _ in _until_over(link, job, follow):
        try:
            with path.open("rb") as file:
                file.seek(read)
                new = file.read()
        except FileNotFoundError:
            if not follow:
                raise UserError(
                    f"{path} is not there: job {job} was not trained in this workspace"
                ) from None
            continue
        read += len(new)
        for line in new.decode("utf-8", "backslashreplace").splitlines():
            click.echo(printable(line))


def _until_over(link: Link, job: str, follow: bool) -> Iterator[None]:
    """Once, or again and again until the job is over; and once more then."""
    while follow and not _is_over(link, job):
        yield
        time.sleep(_PAUSE)
    yield


def _is_over(link: Link, job: str) -> bool:
    state = job_of(link.state(), job)
    return state.state in _OVER and not state.holder
