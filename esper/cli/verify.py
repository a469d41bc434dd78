"""``esper verify``: is a run's log whole?"""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from esper.cli.failures import GOOD, VERIFICATION_FAILED
from esper.cli.options import key_option


@click.command(
    short_help="Check every byte of a run's log, or a proof.",
    epilog="Example:  esper verify runs/digits --key trainer.pub",
)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@key_option
@click.option("--fingerprint", metavar="TEXT", help="That key's fingerprint, in place of the key.")
@click.option(
    "--checkpoint",
    "checkpoint_file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A copy of DIR/checkpoint that you kept: was the log cut or rewritten since?",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(
    path: Path,
    key_file: Path | None,
    fingerprint: str | None,
    checkpoint_file: Path | None,
    as_json: bool,
) -> int:
    """Check every byte of a run (a run directory or an exported file), or a proof.

    Exit code 0: it is whole. 1: it is not, or there is none, and a line says what and where.
    2: bad usage.
    """
    from esper_events.command import check, show

    report = check(path, key_file, fingerprint, checkpoint_file)
    with contextlib.suppress(BrokenPipeError):  # the exit code tells the verdict all the same
        show(path, report, as_json)
    return GOOD if report.ok else VERIFICATION_FAILED
