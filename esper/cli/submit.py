"""``esper submit``: leave a config for a daemon to train."""

from __future__ import annotations

import re
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from esper.cli.failures import UserError, say
from esper.cli.jobs import job_of, linked, max_memory_option, max_time_option
from esper.cli.options import nats_option

if TYPE_CHECKING:
    from esper_events.registry import JobSubmitted

Acknowledgement = Literal["journal", "jetstream"]

_NAME_CHARACTERS = 40
ATTEMPTS = 10


@click.command(
    short_help="Leave a config for a daemon to train.",
    epilog="Example:  esper submit examples/digits.toml --max-memory 2G",
)
@click.argument(
    "config_file", metavar="[CONFIG.toml]", type=click.Path(path_type=Path), required=False
)
@click.option("--seed", type=int, metavar="N", help="In place of the config's seed.")
@click.option(
    "--ack",
    type=click.Choice(["jetstream", "journal"]),
    default="jetstream",
    help="Whose acknowledgement changes wait for; with journal no other machine can take the run "
    "over. Default: jetstream.",
)
@max_memory_option
@max_time_option
@click.option(
    "--attempts",
    type=click.IntRange(min=0),
    default=ATTEMPTS,
    metavar="N",
    help=f"Leases that may expire (0: any). Default: {ATTEMPTS}.",
)
@click.option("--retry", metavar="JOB", help="Submit JOB once more.")
@nats_option
def submit(
    config_file: Path | None,
    seed: int | None,
    ack: Acknowledgement,
    max_memory: int,
    max_time: float,
    attempts: int,
    retry: str | None,
    nats: str | None,
) -> None:
    """Put the training of CONFIG.toml into the queue and print the job's id.

    The text of the config travels; data, and a model of your own, must be in this directory, or
    installed, where the daemon runs. The config's [log] section does not count.
    """
    from esper_events.registry import JobSubmitted

    if (config_file is None) == (retry is None):
        raise click.UsageError("wanted CONFIG.toml, or --retry JOB")
    with linked(nats) as link:
        if retry is not None:
            old = job_of(link.state(), retry).submitted
            job = _with_limits(old, seed, max_memory, max_time)
        elif config_file is not None:
            text, directory, drawn = _config(config_file, seed)
            job = JobSubmitted(
                time=time.time(),
                job=_new_id(config_file.stem),
                config=text,
                directory=str(directory),
                seed=drawn,
                ack=ack,
                memory=max_memory,
                seconds=max_time,
                attempts=attempts,
            )
        link.registry.update(lambda _: [job])
        idle = link.queue.idle()
        link.queue.publish(job.job)
    click.echo(job.job)
    if not idle:
        say("no daemon waits for work on this server; `esper daemon` starts one")


def _config(path: Path, seed: int | None) -> tuple[str, Path, int]:
    """The text, the directory and the seed of a config that can be read."""
    from esper.tolaria.config import ConfigError, read, with_seed

    try:
        config = with_seed(read(path), seed)
    except ConfigError as error:
        raise UserError(str(error)) from error
    return config.text, config.directory, config.run.seed


def _with_limits(
    old: JobSubmitted, seed: int | None, max_memory: int, max_time: float
) -> JobSubmitted:
    """The job once more, under another id; what is given counts."""
    from msgspec.structs import replace

    return replace(
        old,
        time=time.time(),
        job=_new_id(old.job.rpartition("-")[0]),
        seed=old.seed if seed is None else seed,
        memory=max_memory or old.memory,
        seconds=max_time or old.seconds,
    )


def _new_id(name: str) -> str:
    """An id that tells where it comes from and does not repeat."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:_NAME_CHARACTERS].strip("-")
    return f"{plain or 'job'}-{secrets.token_hex(4)}"
