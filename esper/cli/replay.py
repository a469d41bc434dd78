"""``esper replay``: rebuild what a log tells, at any place of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esper.cli.failures import NotWholeError, UserError, reading, say
from esper.cli.options import key_option
from esper_events.terminal import printable

if TYPE_CHECKING:
    from esper.projections.replay import Replayed

NAMES = ("lattice", "controller", "compiler", "audit")


@click.command(
    short_help="Rebuild a state from a run's log.",
    epilog="Example:  esper replay runs/digits --projection controller --to 40",
)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--projection",
    "name",
    type=click.Choice(NAMES),
    default="lattice",
    show_default=True,
    help="What to read out of the log.",
)
@click.option("--to", type=click.IntRange(min=0), metavar="N", help="Fold the first N events only.")
@key_option
@click.option("--cache", is_flag=True, help="Start from DIR/snapshots where it fits; update it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def replay(
    path: Path, name: str, to: int | None, key_file: Path | None, cache: bool, as_json: bool
) -> None:
    """Rebuild a state from the log of a run (a run directory or an exported file).

    The log is verified whole. Exit code 1: it is damaged or missing, and a line says where. Without
    --cache nothing is written.
    """
    from esper.projections.catalogue import PROJECTIONS
    from esper.projections.lattice import ProjectionError
    from esper.projections.replay import OutOfRangeError
    from esper.projections.replay import replay as rebuild
    from esper_events.command import trusted_key

    trusted = trusted_key(key_file)
    try:
        with reading(path):
            replayed = rebuild(path, PROJECTIONS[name], to, trusted=trusted, cached=cache)
    except OutOfRangeError as error:
        raise UserError(f"--to: {error}") from error
    except ProjectionError as error:
        raise NotWholeError(path, error) from error
    for note in replayed.notes:
        say(note)
    if as_json:
        click.echo(json.dumps(_as_dict(path, replayed)))
    else:
        _tell(path, replayed)


def _as_dict(path: Path, replayed: Replayed[Any]) -> dict[str, Any]:
    from esper.projections.canonical import as_json

    return {
        "path": str(path),
        "log": replayed.log,
        "records": replayed.records,
        "head": replayed.head,
        "projection": replayed.projection.name,
        "seq": replayed.seq,
        "snapshot": replayed.snapshot,
        "digest": replayed.digest,
        "state": as_json(replayed.state),
    }


def _tell(path: Path, replayed: Replayed[Any]) -> None:
    begun = f", from a snapshot at {replayed.snapshot}" if replayed.snapshot else ""
    of = f"{replayed.seq} of {replayed.records} events"
    name = replayed.projection.name
    click.echo(printable(f"{path}: {name} of log {replayed.log} after {of}{begun}"))
    click.echo(f"  seq: {replayed.seq}")
    click.echo(f"  digest: {replayed.digest}")
    for line in replayed.projection.words(replayed.state):
        click.echo(f"  {printable(line)}")
