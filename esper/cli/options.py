"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from esper_events.keys import PublicKey

key_option = click.option(
    "--key",
    "key_file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The trainer's public key, from a source that you trust.",
)


def trusted_key(key_file: Path | None) -> PublicKey | None:
    """The key in the file that ``--key`` names.

    Raises:
        click.BadParameter: there is none in it.
    """
    from esper_events.errors import EsperEventsError
    from esper_events.keys import PublicKey

    try:
        return None if key_file is None else PublicKey.load(key_file)
    except EsperEventsError as error:
        raise click.BadParameter(str(error), param_hint="--key") from error
