"""``esper verify``: is a run's log whole?"""

from __future__ import annotations

from pathlib import Path

import click

from esper.cli.failures import GOOD, VERIFICATION_FAILED


@click.command(
    short_help="Check every byte of a run's log.",
    epilog="Example:  esper verify runs/digits --key trainer.pub",
)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--key",
    "key_file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The trainer's public key, from a source that you trust.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(path: Path, key_file: Path | None, as_json: bool) -> int:
    """Check every byte of a run: a run directory or an exported file.

    Exit code 0: the log is whole. 1: it is not, and a line says what and where. 2: bad usage.
    """
    from esper_events.command import show
    from esper_events.errors import EsperEventsError
    from esper_events.keys import PublicKey
    from esper_events.verify import verify_path

    try:
        trusted = None if key_file is None else PublicKey.load(key_file)
    except EsperEventsError as error:
        raise click.BadParameter(str(error), param_hint="--key") from error
    report = verify_path(path, trusted)
    show(path, report, as_json)
    return GOOD if report.ok else VERIFICATION_FAILED
