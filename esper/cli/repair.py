"""``esper repair``: give the server what its copy of a log lacks."""

from __future__ import annotations

from pathlib import Path

import click

from esper.cli.failures import NotWholeError, RunFailedError, UserError
from esper.cli.recorded import recorded_place
from esper_events.terminal import printable


@click.command(
    short_help="Make both copies of a run whole.",
    epilog="Example:  esper repair runs/digits --nats nats://localhost:4222",
)
@click.argument(
    "run_dir",
    metavar="[DIR]",
    required=False,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option("--registry", is_flag=True, help="In place of a run: the registry of the server.")
@click.option(
    "--nats", metavar="URL", help="A NATS server of your own. Default: as the run's config."
)
@click.option(
    "--workspace",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the private server keeps its store. Default: as the run's config.",
)
def repair(run_dir: Path | None, registry: bool, nats: str | None, workspace: Path | None) -> None:
    """Bring journal and server's copy of the run in DIR level, with what their log names.

    What one side lacks, or holds damaged, comes from the other; two histories are an error. With
    --registry: give the server what its registry had when this workspace saw it last, and has no
    more.
    """
    from esper.log.errors import BrokenLogError, JournalError, LogError
    from esper.log.repair_registry import repair_registry
    from esper.log.run import repair_replica
    from esper.log.workspace import Workspace
    from esper.tolaria.config import ConfigError, check_nats_url

    if registry is (run_dir is not None):
        raise click.UsageError("name the directory of a run, or ask for the --registry")
    what = run_dir or Path("registry")
    try:
        if nats is not None:
            check_nats_url(nats, "--nats")
        if run_dir is None:
            done: object = repair_registry(Workspace(workspace), nats)
        else:
            nats, workspace = recorded_place(run_dir, nats, workspace)
            done = repair_replica(run_dir, Workspace(workspace), nats)
    except ConfigError as error:
        raise UserError(str(error)) from error
    except (BrokenLogError, JournalError) as error:
        raise NotWholeError(what, error) from error
    except LogError as error:
        raise RunFailedError(f"{what}: {error}") from error
    click.echo(printable(f"{what}: {done}"))
