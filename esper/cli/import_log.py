"""``esper import-log``: an exported file as a run directory again."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from esper.cli.failures import UserError, reading
from esper.cli.options import key_option
from esper_events.terminal import printable


@click.command(
    "import-log",
    short_help="Make a run directory from an exported file.",
    epilog="Example:  esper import-log digits.esper runs/digits-again",
)
@click.argument(
    "file", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.argument("run_dir", metavar="DIR", type=click.Path(path_type=Path))
@key_option
def import_log(file: Path, run_dir: Path, key_file: Path | None) -> None:
    """Make the run directory DIR from FILE, which `esper export-log` wrote.

    Nothing is made of a file that does not verify. An export holds the log alone, without
    checkpoints of training and without what `esper explain` needs; `esper repair DIR` sends it to
    the server.
    """
    from esper_events.command import trusted_key
    from esper_events.errors import ImportRefusedError
    from esper_events.importing import import_run

    trusted = trusted_key(key_file)
    try:
        with reading(file):
            imported = import_run(file, run_dir, trusted)
    except ImportRefusedError as error:
        raise UserError(str(error)) from error
    told = f"{imported.events} events in {imported.segments} segments of log {imported.log}"
    click.echo(printable(f"{run_dir}: {told}"))
    if not imported.ended:
        click.echo("  note: the run has not ended in this log")
    click.echo(printable(f"next: esper verify {shlex.quote(str(run_dir))}"))
