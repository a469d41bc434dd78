"""``esper repair``: give the server what its copy of a log lacks."""

from __future__ import annotations

from pathlib import Path

import click

from esper.cli.failures import NotWholeError, RunFailedError, UserError
from esper.cli.recorded import recorded_place
from esper_events.terminal import printable


@click.command(
    short_help="Give the server what its copy lacks.",
    epilog="Example:  esper repair runs/digits --nats nats://localhost:4222",
)
@click.argument(
    "run_dir", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--nats", metavar="URL", help="A NATS server of your own. Default: as the run's config."
)
@click.option(
    "--workspace",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the private server keeps its store. Default: as the run's config.",
)
def repair(run_dir: Path, nats: str | None, workspace: Path | None) -> None:
    """Bring the server's copy of the log of the run in DIR up to the local journal.

    What the server holds is compared with the journal first; a difference is an error.
    """
    from esper.log.errors import JournalError, LogError
    from esper.log.run import repair_replica
    from esper.log.workspace import Workspace
    from esper.tolaria.config import ConfigError, check_nats_url

    try:
        if nats is not None:
            check_nats_url(nats, "--nats")
        nats, workspace = recorded_place(run_dir, nats, workspace)
        done = repair_replica(run_dir, Workspace(workspace), nats)
    except ConfigError as error:
        raise UserError(str(error)) from error
    except JournalError as error:
        raise NotWholeError(run_dir, error) from error
    except LogError as error:
        raise RunFailedError(f"{run_dir}: {error}") from error
    click.echo(printable(f"{run_dir}: {done}"))
