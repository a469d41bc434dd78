"""``esper-verify``: the auditor's command."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import click

from esper_events import __version__
from esper_events.checkpoint import load_checkpoint
from esper_events.errors import EsperEventsError, cause
from esper_events.keys import PublicKey
from esper_events.terminal import printable, silence
from esper_events.verify import Report, verify_path


@click.command(epilog="Example:  esper-verify runs/digits --key trainer.pub")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--key",
    "key_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The trainer's public key (OpenSSH format), as you got it from a source you trust.",
)
@click.option(
    "--checkpoint",
    "checkpoint_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A copy of the run's checkpoint, as you kept it: is the log still the one it is of?",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.version_option(__version__, prog_name="esper-verify")
def main(path: Path, key_file: Path | None, checkpoint_file: Path | None, as_json: bool) -> None:
    """Check every byte of a run: a run directory or an exported file.

    Signatures, hash chain, order, signed checkpoint, and the rules that every run obeys. Exit
    code 0: the run is whole. 1: it is not; the line says what and where. 2: bad usage.
    """
    report = check(path, key_file, checkpoint_file)
    try:
        show(path, report, as_json)
    except BrokenPipeError:
        raise
    except OSError as error:
        silence(sys.stdout)
        click.echo(f"esper-verify: cannot write the verdict: {cause(error)}", err=True)
        sys.exit(3)
    sys.exit(0 if report.ok else 1)


def trusted_key(key_file: Path | None) -> PublicKey | None:
    """The key in the file that ``--key`` names.

    Raises:
        click.BadParameter: there is none in it.
    """
    try:
        return None if key_file is None else PublicKey.load(key_file)
    except EsperEventsError as error:
        raise click.BadParameter(str(error), param_hint="--key") from error


def check(path: Path, key_file: Path | None, checkpoint_file: Path | None) -> Report:
    """Verify ``path`` with what the user trusts.

    Raises:
        click.BadParameter: a file of the user's holds no key or no checkpoint.
    """
    trusted = trusted_key(key_file)
    try:
        kept = None if checkpoint_file is None else load_checkpoint(checkpoint_file)
    except EsperEventsError as error:
        raise click.BadParameter(str(error), param_hint="--checkpoint") from error
    return verify_path(path, trusted, kept)


def show(path: Path, report: Report, as_json: bool) -> None:
    """Print ``report`` for people, or as one JSON object."""
    if as_json:
        click.echo(json.dumps({"path": str(path), **dataclasses.asdict(report)}))
        return
    verdict = "ok" if report.ok else "FAILED"
    lines = [f"{path}: {verdict}: {report.message}"]
    lines += [f"  note: {note}" for note in report.messages[1:]]
    if report.ok:
        lines.append(f"  head: {report.head}")
    for line in lines:
        click.echo(printable(line))
