"""``esper keys certify``, ``rotate`` and ``revoke``: which key signs, and which no more."""

from __future__ import annotations

from pathlib import Path

import click

from esper.cli.failures import UserError
from esper.cli.key_files import named_key, refusing, workspace_option
from esper_events.terminal import printable

_RUN = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(epilog="Example:  esper keys certify runs/digits worker.pub --role worker")
@click.argument("run_dir", metavar="[RUN", required=False, type=_RUN)
@click.argument(
    "key_file",
    metavar="KEY]",
    required=False,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--role",
    type=click.Choice(["controller", "worker"]),
    help="What KEY, a public key, is for: it may then sign what that role writes.",
)
@workspace_option
def certify(
    run_dir: Path | None, key_file: Path | None, role: str | None, workspace: Path | None
) -> None:
    """Let the workspace's root key vouch for another.

    Without arguments: for the key that signs its runs, from the next run on, and the one that comes
    after it; `esper keys create` and `rotate` do it too. With them: for KEY, in the log of RUN,
    which began with this root and which nobody is writing at the time.
    """
    from esper.log.by_root import certify_in_run
    from esper.log.keyring import ROOT
    from esper.log.workspace import Workspace
    from esper_events.certificate import Role
    from esper_events.keys import PublicKey

    if (run_dir is None) != (key_file is None) or (run_dir is None) != (role is None):
        raise click.UsageError("wanted a run, a public key and --role, or none of them")
    with refusing(run_dir):
        area = Workspace(workspace)
        if run_dir is None or key_file is None:
            area.keys.certify()
            click.echo("the root vouches for the trainer's key in every run from now on")
        else:
            key = PublicKey.load(key_file)
            certify_in_run(run_dir, area.keys.load(ROOT), key, Role(role))
            click.echo(printable(f"{run_dir}: {key.fingerprint} is a {role}'s key from here on"))


@click.command(epilog="Example:  esper keys rotate")
@workspace_option
def rotate(workspace: Path | None) -> None:
    """Exchange the key that signs a workspace's runs for the one that comes next.

    Runs begin under it from now on, and one that is resumed goes on under it: its log has committed
    to that key, and says from where on it signs. Another is made to come next, under the same pass
    phrase, and certified where the root key is at hand. The key before is kept in keys/retired:
    runs that were left under an earlier one pass through it.
    """
    from esper.log.keyring import NEXT, ROOT, TRAINER
    from esper.log.workspace import Workspace

    with refusing():
        ring = Workspace(workspace).keys
        if not ring.has(TRAINER):
            raise UserError(f"there is no {ring.file(TRAINER)}: there is nothing to rotate yet")
        if not ring.has(NEXT):
            raise UserError(
                f"there is no {ring.file(NEXT)}: `esper keys create --role next` makes it, and the "
                "runs from then on commit to it"
            )
        before = ring.public(TRAINER)
        ring.rotate()
        click.echo(f"signs from now on: {ring.public(TRAINER).fingerprint}")
        click.echo(f"signs no more:     {before.fingerprint}")
        click.echo(f"comes next:        {ring.public(NEXT).fingerprint}")
        if ring.has(ROOT):
            ring.certify()
        elif ring.certificate() is not None:
            click.echo("`esper keys certify` lets the root vouch for the next key too")


@click.command(epilog="Example:  esper keys revoke ed25519:0c5e... runs/digits --from 240")
@click.argument("key")
@click.argument("run_dir", metavar="[RUN]", required=False, type=_RUN)
@click.option(
    "--from",
    "since",
    metavar="EVENT",
    type=click.IntRange(0),
    help="The first event of RUN that is not to be trusted. Default: the one that comes next.",
)
@click.option("--reason", metavar="TEXT", default="", help="Why, for those who read RUN's log.")
@workspace_option
def revoke(
    key: str, run_dir: Path | None, since: int | None, reason: str, workspace: Path | None
) -> None:
    """Let the workspace's root take a key back.

    KEY is a public key's file, or the fingerprint of a key of the workspace or of RUN. With RUN,
    which nobody is writing at the time: KEY writes no more in its log; what it signed there before
    --from stands, and nothing is trusted that it signed behind. Without: in every run of the root,
    and the workspace does not sign with it. A file is written that tells it to `esper verify
    --revoked`, since no log tells what was revoked after its end.
    """
    from esper.log.by_root import revoke_in_run
    from esper.log.keyring import ROOT
    from esper.log.workspace import Workspace
    from esper_events.revocation import revoke

    if run_dir is None and (since is not None or reason):
        raise click.UsageError("--from and --reason are about a run: name it")
    with refusing(run_dir):
        ring = Workspace(workspace).keys
        taken, root = named_key(key, ring, run_dir), ring.load(ROOT)
        if run_dir is None:
            told, where = revoke(root, taken), "in every run of this root"
        else:
            told, on_record = revoke_in_run(run_dir, root, taken, since, reason)
            where = f"in {told.log} from event {told.since} on"
            if not on_record:
                where += ", which has ended: only this file tells"
        path = ring.keep(told)
        click.echo(printable(f"{path}: {taken.fingerprint} is revoked {where}"))
