"""What the verbs about jobs share: the server, sizes, and one job by its id."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from esper.cli.failures import UserError
from esper.cli.options import server_failures

if TYPE_CHECKING:
    from esper.projections.registry import JobState, RegistryState
    from esper.tolaria.daemon.link import Link

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Size(click.ParamType[int]):
    """Bytes, given as ``1500M`` or ``2G``: powers of 1024."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes."""
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(str(value).strip())
        size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
        if not 0 < size < 1 << 62:
            self.fail(f"got {value!r}, wanted a size such as 1500M or 2G", param, ctx)
        return size


max_memory_option = click.option(
    "--max-memory", type=Size(), default=0, help="Memory that a job may use, such as 2G."
)
max_time_option = click.option(
    "--max-time",
    type=click.FloatRange(min=0.0),
    default=0.0,
    metavar="SECONDS",
    help="Longest training under one lease.",
)


@contextmanager
def linked(nats: str | None, lease: float | None = None) -> Iterator[Link]:
    """The server's queue and registry; what fails is told as one line."""
    from esper.log.workspace import Workspace
    from esper.tolaria.daemon.link import Link

    with server_failures(nats), Link(Workspace(), nats, lease) as link:
        yield link


def job_of(state: RegistryState, job: str) -> JobState:
    """The job with this id; raises ``UserError`` where there is none."""
    found = state.jobs.get(job)
    if found is None:
        raise UserError(
            f"no job {job!r} on this server: `esper status` lists them, `--nats` names another"
        )
    return found
