"""Where runs that belong together keep what they share: their keys and the server."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from esper.log.credentials import Credentials
from esper.log.errors import LogError
from esper.log.keyring import TRAINER, KeyExistsError, Keyring
from esper.log.server import EmbeddedServer
from esper_events.certificate import Certificate
from esper_events.errors import KeyFileError, RevocationError
from esper_events.keys import PublicKey, SigningKey

VARIABLE = "ESPER_WORKSPACE"
DEFAULT = ".esper"


@contextlib.contextmanager
def _usable() -> Iterator[None]:
    """A block in which a key that cannot be used is a ``LogError``."""
    try:
        yield
    except (KeyFileError, RevocationError) as error:
        raise LogError(f"the workspace's signing key cannot be used: {error}") from error


class Workspace:
    """The directory ``path``, else ``$ESPER_WORKSPACE``, else ``.esper`` where one stands.

    It is created when it is first needed, for its owner only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = Path(path or os.environ.get(VARIABLE) or DEFAULT).absolute()

    def key(self) -> SigningKey:
        """The key that signs this workspace's runs; created at its first use.

        Raises ``LogError`` for a key that others could have read, that no pass phrase opens, that
        is none, or that the root has taken back.
        """
        with _usable():
            with contextlib.suppress(KeyExistsError):
                self.keys.create(TRAINER)
            self.keys.require_trusted(self.keys.public(TRAINER))
            return self.keys.load(TRAINER)

    @property
    def keys(self) -> Keyring:
        """The workspace's keys; raises ``LogError`` where there is no place for them."""
        return Keyring(self._directory("keys"))

    def credentials(self) -> Credentials:
        """What a log says of `key` when that begins to write in it; raises ``LogError``."""
        with _usable():
            return self.keys.credentials()

    def vouched_by(self, root: PublicKey, log: str) -> Certificate | None:
        """A certificate of `key` for ``log`` by ``root``, where that is a key that was in its place
        before: who has no root is one. Raises ``LogError``."""
        with _usable():
            return self.keys.vouched_by(root, log)

    def attach_server(self) -> EmbeddedServer:
        """A share in the workspace's nats-server; its ``endpoint()`` starts the server."""
        return EmbeddedServer(self._directory("server"))

    def registry_file(self, server: str) -> Path:
        """Where the workspace keeps what it has seen of the registry of the server named so."""
        name = re.sub(r"[^A-Za-z0-9.]+", "-", server)
        return self._directory("registry") / f"{name}.segments"

    def note_run(self, log: str, run_dir: Path) -> None:
        """Remember where the run with the log id ``log`` lies; raises ``LogError``."""
        path = self._directory("runs") / log
        try:
            path.write_text(f"{run_dir.absolute()}\n", encoding="utf-8")
        except OSError as error:
            raise LogError(f"{path}: cannot be written: {error}") from error

    def run_directory(self, log: str) -> Path | None:
        """Where the run with this log id was when it was last written, if that is known."""
        try:
            return Path((self.path / "runs" / log).read_text(encoding="utf-8").rstrip("\n"))
        except (OSError, ValueError):
            return None

    def _directory(self, name: str) -> Path:
        directory = self.path / name
        try:
            if not self.path.exists():
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                (self.path / ".gitignore").write_text("*\n")
            directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise LogError(f"cannot create the workspace {self.path}: {error}") from error
        return directory
