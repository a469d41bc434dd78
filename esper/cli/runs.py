"""``esper runs``: the runs that the registry of a server names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from esper.cli.options import nats_option, registry_of, workspace_option
from esper.cli.table import aligned
from esper_events.terminal import printable

if TYPE_CHECKING:
    from esper.log.census import Found
    from esper.log.workspace import Workspace

_COLUMNS = ("RUN", "TRAINER", "EVENTS", "STATE", "DIRECTORY")
_FINGERPRINT_CHARACTERS = len("ed25519:") + 12


@click.command(
    short_help="List the runs that a server's registry names.",
    epilog="Example:  esper runs --nats nats://localhost:4222",
)
@nats_option
@workspace_option
@click.option(
    "--admit",
    "key_file",
    metavar="KEY",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="First let the owner of this public key register runs as well.",
)
@click.option(
    "--revoke",
    "revocation_file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="First take that right from a key, by what `esper keys revoke` wrote.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def runs(
    nats: str | None,
    workspace: Path | None,
    key_file: Path | None,
    revocation_file: Path | None,
    as_json: bool,
) -> None:
    """List the runs that are registered on a server, oldest first.

    EVENTS is how far the run had come when that was last recorded. STATE is what the server's copy
    of its log says: how it ended, or that it is open; MISSING where the copy is gone. Nothing is
    verified but the registry: `esper verify --registry` does that.
    """
    from esper.log.census import look
    from esper.log.registry import admit_writer, revoke_writer
    from esper_events.command import trusted_key
    from esper_events.errors import RevocationError
    from esper_events.revocation import load_revocation

    key = trusted_key(key_file, "--admit")
    try:
        revocation = None if revocation_file is None else load_revocation(revocation_file)
    except RevocationError as error:
        raise click.BadParameter(str(error), param_hint="--revoke") from error
    with registry_of(nats, workspace) as (registry, place):
        registry.refresh()
        if key is not None:
            admit_writer(registry, place, key)
        if revocation is not None:
            revoke_writer(registry, revocation)
        found = [_row(look(registry, run), place) for run in registry.runs.values()]
    if as_json:
        click.echo(json.dumps({"registry": registry.name, "runs": found}))
        return
    if not found:
        click.echo(printable(f"no runs in the registry of {registry.name}"))
        return
    for line in aligned([_COLUMNS, *map(_cells, found)]):
        click.echo(printable(line))


def _row(found: Found, workspace: Workspace) -> dict[str, object]:
    run, directory = found.run, workspace.run_directory(found.run.log)
    return {
        "run": run.log,
        "trainer": run.trainer.fingerprint,
        "events": run.events,
        "state": state_of(found),
        "fault": found.fault or None,
        "directory": None if directory is None else str(directory),
    }


def state_of(found: Found) -> str:
    """A word for what the server's copy of a run is."""
    if found.missing:
        return "MISSING"
    return "DAMAGED" if found.fault else found.outcome or "open"


def _cells(row: dict[str, object]) -> tuple[str, ...]:
    directory = row["directory"]
    return (
        str(row["run"]),
        str(row["trainer"])[:_FINGERPRINT_CHARACTERS],
        str(row["events"]),
        str(row["state"]),
        "-" if directory is None else str(directory),
    )
