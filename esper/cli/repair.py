"""``esper repair``: give the server what its copy of a log lacks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from esper.cli.failures import NotWholeError, RunFailedError, UserError
from esper_events.terminal import printable

if TYPE_CHECKING:
    from esper.tolaria.config import LogSettings


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
        recorded = _recorded(run_dir)
        if recorded is not None:
            nats = nats or recorded.nats
            workspace = workspace or (Path(recorded.workspace) if recorded.workspace else None)
        done = repair_replica(run_dir, Workspace(workspace), nats)
    except ConfigError as error:
        raise UserError(str(error)) from error
    except JournalError as error:
        raise NotWholeError(run_dir, error) from error
    except LogError as error:
        raise RunFailedError(f"{run_dir}: {error}") from error
    click.echo(printable(f"{run_dir}: {done}"))


def _recorded(run_dir: Path) -> LogSettings | None:
    """Where the run's own config, kept in its log, says that the copy is; None without one."""
    from esper.tolaria.config import ConfigError, parse
    from esper_events.errors import ChainError
    from esper_events.events import RunStarted
    from esper_events.reader import LogReader

    try:
        first = next(LogReader(run_dir).records()).event
        return parse(first.config, run_dir).log if isinstance(first, RunStarted) else None
    except (ChainError, ConfigError, OSError, StopIteration):
        return None
