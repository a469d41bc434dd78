"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from esper.cli.failures import NotWholeError, RunFailedError, UserError

if TYPE_CHECKING:
    from esper.log.shared_log import SharedLog
    from esper.log.workspace import Workspace

key_option = click.option(
    "--key",
    "key_file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The trainer's public key, from a source that you trust.",
)
nats_option = click.option(
    "--nats", metavar="URL", help="A NATS server of your own. Default: the workspace's."
)
workspace_option = click.option(
    "--workspace",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where keys and the private server's store are. Default: $ESPER_WORKSPACE, or .esper.",
)


@contextmanager
def server_failures(nats: str | None) -> Iterator[None]:
    """A block that uses the server at ``nats``, the workspace's where that is None; what fails is
    told as one line."""
    from esper.log.errors import BrokenLogError, DamagedStoreError, LogError
    from esper.tolaria.config import ConfigError, check_nats_url

    try:
        if nats is not None:
            check_nats_url(nats, "--nats")
        yield
    except ConfigError as error:
        raise UserError(str(error)) from error
    except (BrokenLogError, DamagedStoreError) as error:
        raise NotWholeError(Path("registry"), error) from error
    except LogError as error:
        raise RunFailedError(str(error)) from error


@contextmanager
def registry_of(nats: str | None, workspace: Path | None) -> Iterator[tuple[SharedLog, Workspace]]:
    """The registry of the server that the user named; what fails is told as one line."""
    from esper.log.registry import open_registry
    from esper.log.workspace import Workspace

    place = Workspace(workspace)
    with server_failures(nats), open_registry(place, nats) as registry:
        yield registry, place
