"""``esper show``: the history of a run in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from esper.cli.failures import reading, say
from esper.cli.following import arrivals, check_followed, follow_option
from esper.cli.options import key_option

if TYPE_CHECKING:
    from esper_events.events import Record
    from esper_events.keys import PublicKey


@click.command(
    short_help="Tell a run's history in words.", epilog="Example:  esper show runs/digits"
)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@key_option
@click.option("--all", "everything", is_flag=True, help="Every event, one line each.")
@follow_option
def show(path: Path, key_file: Path | None, everything: bool, follow: bool) -> None:
    """Tell the history of a run (a run directory or an exported file) in words.

    Each line is proven before it is shown. Exit code 1 where the log is damaged or missing:
    what comes before the damage is shown.
    """
    from esper.cli.story import Story
    from esper_events.command import trusted_key
    from esper_events.words import describe

    if follow:
        check_followed(path)
    tell = describe if everything else Story().tell
    records = _followed if follow else _records
    for record in records(path, trusted_key(key_file)):
        line = tell(record)
        if line is not None:
            click.echo(line)


def _records(path: Path, trusted: PublicKey | None) -> Iterator[Record]:
    from esper_events.newer import AuditVerifier
    from esper_events.reader import LogReader

    with reading(path):
        reader = LogReader(path, trusted, verifier=AuditVerifier)
        yield from reader.records()
    for finding in reader.verifier.findings:
        say(finding)


def _followed(path: Path, trusted: PublicKey | None) -> Iterator[Record]:
    from esper_events.follow import LogFollower

    with reading(path):
        for records in arrivals(LogFollower(path, trusted)):
            yield from records
