"""``esper export-log``: a run's log as one file, for an auditor elsewhere."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from esper.cli.failures import UserError, reading
from esper_events.terminal import printable


@click.command(
    "export-log",
    short_help="Write a run's log to one file.",
    epilog="Example:  esper export-log runs/digits digits.esper",
)
@click.argument(
    "run_dir", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
def export_log(run_dir: Path, file: Path) -> None:
    """Write the log of the run in DIR to FILE, which `esper verify` and `esper show` read.

    The file ends in a signed footer, so that every cut is noticed.
    """
    from esper_events.errors import ExportError
    from esper_events.export import export_run

    try:
        with reading(run_dir):
            exported = export_run(run_dir, file)
    except ExportError as error:
        raise UserError(str(error)) from error
    told = f"{exported.events} events in {exported.segments} segments"
    click.echo(printable(f"{file}: {told}"))
    if not exported.whole:
        click.echo("  note: what was appended since the last signed checkpoint is left out")
    click.echo(printable(f"next: esper verify {shlex.quote(str(file))}"))
