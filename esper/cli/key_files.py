"""What the commands about keys share: finding a key, showing it, and refusing one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from esper.cli.failures import NotWholeError, UserError
from esper_events.terminal import printable

if TYPE_CHECKING:
    from esper.log.keyring import Keyring
    from esper_events.keys import PublicKey

workspace_option = click.option(
    "--workspace",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the keys lie. Default: $ESPER_WORKSPACE, else .esper.",
)


@contextlib.contextmanager
def refusing(path: Path | None = None) -> Iterator[None]:
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


def public_key(path: Path) -> PublicKey:
    """The key in a file, a private or a public one."""
    from esper.log.passphrase import passphrase
    from esper_events.keys import PublicKey, SigningKey

    with path.open("rb") as file:
        private = file.read(5) == b"-----"
    return SigningKey.load(path, passphrase).public if private else PublicKey.load(path)


def named_key(name: str, ring: Keyring, run_dir: Path | None) -> PublicKey:
    """The key in the file ``name``, or that of the workspace or the run with this fingerprint."""
    from esper.log.keyring import NEXT
    from esper_events.anchor import Fingerprint
    from esper_events.errors import DistrustError
    from esper_events.reader import LogReader

    if Path(name).is_file():
        return public_key(Path(name))
    wanted = Fingerprint(name)
    known = [ring.public(one) for one in (*ring.line(), NEXT) if ring.has(one)]
    if run_dir is not None:
        reader = LogReader(run_dir)
        with contextlib.suppress(DistrustError):
            for _ in reader.records():
                pass
        known += reader.verifier.authority.known
    found = next((key for key in known if wanted.vouches_for(key)), None)
    if found is None:
        where = "the workspace" if run_dir is None else f"the workspace or {run_dir}"
        raise UserError(f"no key of {where} has the fingerprint {name}: name its public key's file")
    return found


def show_key(path: Path, key: PublicKey, use: str = "") -> None:
    """The fingerprints of the key in the file at ``path``, and what it is for."""
    lines = [f"{path}:", f"  {key.fingerprint}", f"  {key.openssh_fingerprint}"]
    for line in lines + [f"  {use}"] * bool(use):
        click.echo(printable(line))
