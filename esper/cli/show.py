"""``esper show``: the history of a run in words."""

from __future__ import annotations

from pathlib import Path

import click

from esper.cli.failures import VERIFICATION_FAILED, say


@click.command(
    short_help="Tell a run's history in words.", epilog="Example:  esper show runs/digits"
)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Every event, one line each.")
def show(path: Path, everything: bool) -> int:
    """Tell the history of a run (a run directory or an exported file) in words.

    Each line is proven before it is shown. Exit code 1 where the log is damaged: what comes
    before the damage is shown.
    """
    from esper.cli.story import Story
    from esper_events.errors import ChainError
    from esper_events.reader import LogReader
    from esper_events.words import describe

    tell = describe if everything else Story().tell
    try:
        for record in LogReader(path).records():
            line = tell(record)
            if line is not None:
                click.echo(line)
    except ChainError as error:
        say(f"{path}: FAILED: {error}")
        return VERIFICATION_FAILED
    except BrokenPipeError:
        raise
    except OSError as error:
        say(f"{path}: FAILED: cannot be read: {error}")
        return VERIFICATION_FAILED
    return 0
