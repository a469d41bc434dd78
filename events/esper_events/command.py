"""``esper-verify``: the auditor's command."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import click

from esper_events import __version__
from esper_events.errors import EsperEventsError
from esper_events.keys import PublicKey
from esper_events.verify import Report, verify_path


@click.command(epilog="Example:  esper-verify runs/digits --key trainer.pub")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--key",
    "key_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The trainer's public key (OpenSSH format), as you got it from a source you trust.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.version_option(__version__, prog_name="esper-verify")
def main(path: Path, key_file: Path | None, as_json: bool) -> None:
    """Check every byte of a run: a run directory or an exported file.

    Signatures, hash chain, order, signed checkpoint, and the rules that every run obeys. Exit
    code 0: the run is whole. 1: it is not; the line says what and where. 2: bad usage.
    """
    try:
        trusted = None if key_file is None else PublicKey.load(key_file)
    except EsperEventsError as error:
        raise click.BadParameter(str(error), param_hint="--key") from error
    report = verify_path(path, trusted)
    show(path, report, as_json)
    sys.exit(0 if report.ok else 1)


def show(path: Path, report: Report, as_json: bool) -> None:
    """Print ``report`` for people, or as one JSON object."""
    if as_json:
        click.echo(json.dumps({"path": str(path), **dataclasses.asdict(report)}))
        return
    verdict = "ok" if report.ok else "FAILED"
    click.echo(f"{path}: {verdict}: {report.message}")
    for note in report.messages[1:]:
        click.echo(f"  note: {note}")
    if report.ok:
        click.echo(f"  head: {report.head}")
