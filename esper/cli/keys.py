"""``esper keys``: the keys that sign runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from esper.cli.failures import UserError
from esper.cli.key_changes import certify, revoke, rotate
from esper.cli.key_files import public_key, refusing, show_key, workspace_option
from esper_events.terminal import printable

if TYPE_CHECKING:
    from esper.log.keyring import Keyring


@click.group(
    short_help="Make, show and exchange the keys that sign runs.",
    epilog="Example:  esper keys create --encrypt",
)
def keys() -> None:
    """Make, show and exchange the keys that sign runs, and the root key that vouches for them."""


keys.add_command(certify)
keys.add_command(rotate)
keys.add_command(revoke)


@keys.command(epilog="Example:  esper keys create --role root --encrypt")
@click.option(
    "--role",
    type=click.Choice(["trainer", "root", "next"]),
    default="trainer",
    help="trainer (default): signs runs. root: vouches for the trainer's. next: comes after it.",
)
@click.option("--encrypt", is_flag=True, help="Under a pass phrase, which its uses ask for.")
@workspace_option
def create(role: str, encrypt: bool, workspace: Path | None) -> None:
    """Make a key of a workspace.

    The trainer's signs its runs; without this the first run makes one, not encrypted. The next key
    is made with it: runs commit to it, so that `esper keys rotate` can exchange the one for the
    other. A root key vouches for both in every run from then on: `esper verify` and `esper-verify`
    need its fingerprint alone, whichever key signs. The pass phrase is read from the file that
    ESPER_PASSPHRASE_FILE names, else from ESPER_PASSPHRASE, else asked for.
    """
    from esper.log.keyring import NEXT, ROOT, TRAINER
    from esper.log.passphrase import new_passphrase
    from esper.log.workspace import Workspace

    with refusing():
        ring = Workspace(workspace).keys
        path = ring.file(role)
        if ring.has(role):
            raise UserError(f"{path} exists already; a key is never overwritten")
        ring.create(role, new_passphrase(path) if encrypt else b"")
        if ring.has(ROOT):
            ring.certify()
        show_key(path.with_suffix(".pub"), ring.public(role))
        if role == TRAINER:
            show_key(ring.file(NEXT).with_suffix(".pub"), ring.public(NEXT), "comes next")
        if ring.has(ROOT):
            click.echo("  the root vouches for the trainer's key in every run from now on")


@keys.command(epilog="Example:  esper keys show runs/digits/trainer.pub")
@click.argument(
    "file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@workspace_option
def show(file: Path | None, workspace: Path | None) -> None:
    """Show the fingerprints of the key in FILE, a private or a public one.

    Without FILE: of the workspace's keys, what each is for, and which were revoked. Both forms are
    taken by `esper verify --fingerprint`.
    """
    from esper.log.workspace import Workspace

    with refusing(file):
        if file is None:
            _show_all(Workspace(workspace).keys)
        else:
            show_key(file, public_key(file))


def _show_all(ring: Keyring) -> None:
    from esper.log.keyring import NEXT, ROOT, TRAINER
    from esper_events.keys import PublicKey

    *before, _ = ring.line()
    uses = {ROOT: "vouches for the others", **dict.fromkeys(before, "signs no more")}
    uses |= {TRAINER: "signs the runs", NEXT: "comes next"}
    present = [name for name in uses if ring.has(name)]
    if not present:
        raise UserError(
            f"there is no {ring.file(TRAINER)} yet: the first run makes it, or `esper keys create`"
        )
    for name in present:
        show_key(ring.file(name).with_suffix(".pub"), ring.public(name), uses[name])
    for told in ring.revocations():
        where = f"in {told.log} from event {told.since} on" if told.log else "in every run"
        click.echo(printable(f"revoked {where}: {PublicKey(told.key).fingerprint}"))
