"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path

import click

key_option = click.option(
    "--key",
    "key_file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The trainer's public key, from a source that you trust.",
)
