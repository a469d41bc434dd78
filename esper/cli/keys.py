"""``esper keys``: the keys that sign runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from esper.cli.failures import UserError
from esper_events.terminal import printable

if TYPE_CHECKING:
    from esper_events.keys import PublicKey

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
    """Make and show the keys that sign runs, and the root key that vouches for them."""


@keys.command(epilog="Example:  esper keys create --role root --encrypt")
@click.option(
    "--role",
    type=click.Choice(["trainer", "root"]),
    default="trainer",
    help="trainer (default): signs runs. root: vouches for the trainer's.",
)
@click.option("--encrypt", is_flag=True, help="Under a pass phrase, which its uses ask for.")
@_workspace
def create(role: str, encrypt: bool, workspace: Path | None) -> None:
    """Make a key of a workspace.

    The trainer's signs its runs; without this the first run makes one, not encrypted. A root key
    vouches for the trainer's in every run from then on: `esper verify` and `esper-verify` need
    its fingerprint alone, whichever key signs. The pass phrase is read from the file that
    ESPER_PASSPHRASE_FILE names, else from ESPER_PASSPHRASE, else asked for.
    """
    from esper.log.passphrase import new_passphrase
    from esper.log.workspace import ROOT, Workspace
    from esper_events.keys import PublicKey

    with _refusing():
        area = Workspace(workspace)
        path = area.key_file(role)
        if path.exists():
            raise UserError(f"{path} exists already; a key is never overwritten")
        area.create_key(role, new_passphrase(path) if encrypt else b"")
        public = path.with_suffix(".pub")
        _show(public, PublicKey.load(public))
        if area.key_file(ROOT).exists():
            area.certify()
            click.echo("  the root vouches for the trainer's key in every run from now on")


@keys.command(epilog="Example:  esper keys show runs/digits/trainer.pub")
@click.argument(
    "file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@_workspace
def show(file: Path | None, workspace: Path | None) -> None:
    """Show the fingerprints of the key in FILE, a private or a public one.

    Without FILE: of the workspace's keys. Both forms are taken by `esper verify --fingerprint`.
    """
    from esper.log.workspace import ROOT, TRAINER, Workspace

    area = Workspace(workspace)
    # The public half, where it is there, asks for no pass phrase.
    kept = [area.key_file(name) for name in (ROOT, TRAINER)]
    halves = [(path.with_suffix(".pub"), path) for path in kept]
    paths = [file] if file else [public if public.exists() else key for public, key in halves]
    present = [path for path in paths if path.exists()]
    if not present:
        raise UserError(
            f"there is no {paths[-1]} yet: the first run makes it, or `esper keys create`"
        )
    for path in present:
        with _refusing(path):
            _show(path, _public(path))


@keys.command(epilog="Example:  esper keys certify")
@_workspace
def certify(workspace: Path | None) -> None:
    """Let the workspace's root key vouch for its trainer's key, from the next run on.

    `esper keys create` does it too; this is for keys that were put in their place by hand.
    """
    from esper.log.workspace import Workspace

    with _refusing():
        Workspace(workspace).certify()
        click.echo("the root vouches for the trainer's key in every run from now on")


@contextlib.contextmanager
def _refusing(path: Path | None = None) -> Iterator[None]:
    """A block in which a key that cannot be used is bad input."""
    from esper.log.errors import LogError
    from esper_events.errors import EsperEventsError

    try:
        yield
    except (EsperEventsError, LogError) as error:
        raise UserError(str(error)) from error
    except OSError as error:
        named = path or error.filename
        raise UserError(f"{named}: cannot be used: {error.strerror}") from error


def _public(path: Path) -> PublicKey:
    from esper.log.passphrase import passphrase
    from esper_events.keys import PublicKey, SigningKey

    with path.open("rb") as file:
        private = file.read(5) == b"-----"
    return SigningKey.load(path, passphrase).public if private else PublicKey.load(path)


def _show(path: Path, key: PublicKey) -> None:
    for line in (f"{path}:", f"  {key.fingerprint}", f"  {key.openssh_fingerprint}"):
        click.echo(printable(line))
