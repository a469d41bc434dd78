"""``esper daemon``: train what others submit."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from esper.cli.jobs import linked, max_memory_option, max_time_option
from esper.cli.options import nats_option
from esper_events.terminal import printable

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@click.command(
    short_help="Train the jobs that are submitted.", epilog="Example:  esper daemon --jobs 2"
)
@click.option(
    "--jobs", type=click.IntRange(1, 256), default=1, metavar="N", help="At a time. Default: 1."
)
@click.option(
    "--lease",
    type=click.FloatRange(1.0, 86400.0),
    metavar="SECONDS",
    help="How long a silent daemon keeps its jobs, for all of a server. Default: as it is, or 60.",
)
@max_memory_option
@max_time_option
@click.option(
    "--accept-unproved",
    is_flag=True,
    help="Rely on a server of your own that cannot be shown to sync every message.",
)
@nats_option
def daemon(
    jobs: int,
    lease: float | None,
    max_memory: int,
    max_time: float,
    accept_unproved: bool,
    nats: str | None,
) -> None:
    """Take jobs from the queue and train each in a process of its own, until told to stop.

    SIGTERM or Ctrl-C: running jobs stop at their next safe point and go on here or elsewhere later;
    a second one kills them. Limits are caps on what jobs may ask for. The runs lie in the
    workspace, in jobs/JOB/run.
    """
    from esper.log.workspace import Workspace
    from esper.tolaria.daemon.daemon import Daemon
    from esper.tolaria.daemon.intake import Settings

    settings = Settings(jobs, max_memory, max_time, accept_unproved=accept_unproved)
    with linked(nats, lease) as link:
        worker = Daemon(Workspace(), nats, link, settings, _tell)
        _tell(f"daemon {worker.holder}: {jobs} job{'s' if jobs > 1 else ''} at a time")
        with _heard(worker.stop):
            worker.run()
        _tell("daemon ended")


@contextmanager
def _heard(stop: Callable[[], None]) -> Iterator[None]:
    """A block in which a signal that ends a command calls ``stop`` instead."""
    before = {number: signal.getsignal(number) for number in _ENDING}
    # One that is ignored, as nohup has it, stays ignored.
    for number in (number for number in _ENDING if before[number] is not signal.SIG_IGN):
        signal.signal(number, lambda *_: stop())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(what: str) -> None:
    click.echo(printable(f"{time.strftime('%H:%M:%S')} {what}"), err=True)
