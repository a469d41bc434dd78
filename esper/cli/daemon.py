"""``esper daemon``: train what others submit."""

from __future__ import annotations

import signal
import time

import click

from esper.cli.jobs import linked, max_memory_option, max_time_option, nats_option
from esper_events.terminal import printable


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
    from esper.tolaria.daemon.daemon import Daemon, Settings

    settings = Settings(jobs, max_memory, max_time, accept_unproved=accept_unproved)
    with linked(nats, lease) as link:
        worker = Daemon(Workspace(), nats, link, settings, _tell)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: worker.stop())
        _tell(f"daemon {worker.holder}: {jobs} job{'s' if jobs > 1 else ''} at a time")
        worker.run()
        _tell("daemon ended")


def _tell(what: str) -> None:
    click.echo(printable(f"{time.strftime('%H:%M:%S')} {what}"), err=True)
