"""``esper keys``: the keys that sign runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from esper.cli.failures import UserError
from esper_events.terminal import printable

if TYPE_CHECKING:
    from esper_events.keys import PublicKey, Unlock

_workspace = click.option(
    "--workspace",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the keys lie. Default: $ESPER_WORKSPACE, else .esper.",
)


@click.group(
    short_help="Make and show the keys that sign runs.",
    epilog="Example:  esper keys create --encrypt",
)
def keys() -> None:
    """Make and show the keys that sign runs."""


@keys.command(epilog="Example:  esper keys create --encrypt")
@click.option("--encrypt", is_flag=True, help="Under a pass phrase, which runs then ask for.")
@_workspace
def create(encrypt: bool, workspace: Path | None) -> None:
    """Make the key that signs the runs of a workspace.

    Without this the first run makes one, not encrypted. The pass phrase is read from the file
    that ESPER_PASSPHRASE_FILE names, else from ESPER_PASSPHRASE, else asked for.
    """
    from esper.log.errors import LogError
    from esper.log.passphrase import new_passphrase
    from esper.log.workspace import Workspace
    from esper_events.errors import KeyFileError

    area = Workspace(workspace)
    try:
        if area.key_file.exists():
            raise UserError(f"{area.key_file} exists already; a key is never overwritten")
        secret = new_passphrase(area.key_file) if encrypt else b""
        area.create_key(secret)
        _show(area.key_file, _public(area.key_file, lambda _: secret))
    except (KeyFileError, LogError) as error:
        raise UserError(str(error)) from error


@keys.command(epilog="Example:  esper keys show runs/digits/trainer.pub")
@click.argument(
    "file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@_workspace
def show(file: Path | None, workspace: Path | None) -> None:
    """Show the fingerprints of the key in FILE, a private or a public one.

    Without FILE: of the workspace's key. Both forms are taken by `esper verify --fingerprint`.
    """
    from esper.log.passphrase import passphrase
    from esper.log.workspace import Workspace
    from esper_events.errors import EsperEventsError

    path = file or Workspace(workspace).key_file
    if not path.exists():
        raise UserError(f"there is no {path} yet: the first run makes it, or `esper keys create`")
    try:
        _show(path, _public(path, passphrase))
    except EsperEventsError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _public(path: Path, unlock: Unlock) -> PublicKey:
    from esper_events.keys import PublicKey, SigningKey

    with path.open("rb") as file:
        private = file.read(5) == b"-----"
    return SigningKey.load(path, unlock).public if private else PublicKey.load(path)


def _show(path: Path, key: PublicKey) -> None:
    for line in (f"{path}:", f"  {key.fingerprint}", f"  {key.openssh_fingerprint}"):
        click.echo(printable(line))
