"""``esper keys``: the keys that sign runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from esper.cli.failures import NotWholeError, UserError
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
        rooted = area.key_file(ROOT).exists()
        if rooted:
            area.certify()
        public = path.with_suffix(".pub")
        _show(public, PublicKey.load(public))
        if rooted:
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


@keys.command(epilog="Example:  esper keys certify runs/digits worker.pub --role worker")
@click.argument(
    "run_dir",
    metavar="[RUN",
    required=False,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
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
@_workspace
def certify(
    run_dir: Path | None, key_file: Path | None, role: str | None, workspace: Path | None
) -> None:
    """Let the workspace's root key vouch for another.

    Without arguments: for the key that signs its runs, from the next run on; `esper keys create`
    does it too. With them: for KEY, in the log of RUN, which began with this root and which
    nobody is writing at the time.
    """
    from esper.log.run import certify_in_run
    from esper.log.workspace import Workspace
    from esper_events.certificate import Role
    from esper_events.keys import PublicKey

    if (run_dir is None) != (key_file is None) or (run_dir is None) != (role is None):
        raise click.UsageError("wanted a run, a public key and --role, or none of them")
    with _refusing(run_dir):
        if run_dir is None or key_file is None:
            Workspace(workspace).certify()
            click.echo("the root vouches for the trainer's key in every run from now on")
        else:
            key = PublicKey.load(key_file)
            certify_in_run(run_dir, Workspace(workspace).root_key(), key, Role(role))
            click.echo(printable(f"{run_dir}: {key.fingerprint} is a {role}'s key from here on"))


@contextlib.contextmanager
def _refusing(path: Path | None = None) -> Iterator[None]:
    """A block in which a key that cannot be used is bad input; ``path`` is what it is about."""
    from esper.log.errors import JournalError, LogError
    from esper_events.errors import EsperEventsError

    try:
        yield
    except BrokenPipeError:
        raise  # of the output
    except JournalError as error:
        raise NotWholeError(path or Path(), error) from error
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
