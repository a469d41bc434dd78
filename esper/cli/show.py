"""``esper show``: the history of a run in words."""

from __future__ import annotations

from pathlib import Path

import click

from esper.cli.failures import reading
from esper.cli.options import key_option, trusted_key


@click.command(
    short_help="Tell a run's history in words.", epilog="Example:  esper show runs/digits"
)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@key_option
@click.option("--all", "everything", is_flag=True, help="Every event, one line each.")
def show(path: Path, key_file: Path | None, everything: bool) -> None:
    """Tell the history of a run (a run directory or an exported file) in words.

    Each line is proven before it is shown. Exit code 1 where the log is damaged or missing:
    what comes before the damage is shown.
    """
    from esper.cli.story import Story
    from esper_events.reader import LogReader
    from esper_events.words import describe

    tell = describe if everything else Story().tell
    with reading(path):
        for record in LogReader(path, trusted_key(key_file)).records():
            line = tell(record)
            if line is not None:
                click.echo(line)
