"""Where runs that belong together keep what they share: the trainer's key and the server."""

from __future__ import annotations

import os
from pathlib import Path

from esper.log.errors import LogError
from esper.log.locks import FileLock
from esper.log.server import EmbeddedServer
from esper_events.errors import KeyFileError
from esper_events.keys import SigningKey

VARIABLE = "ESPER_WORKSPACE"
DEFAULT = ".esper"

_LOCK_SECONDS = 10.0


class Workspace:
    """The directory ``path``, else ``$ESPER_WORKSPACE``, else ``.esper`` where one stands.

    It is created when it is first needed, for its owner only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = Path(path or os.environ.get(VARIABLE) or DEFAULT).absolute()

    def key(self) -> SigningKey:
        """The key that signs this workspace's runs; created at its first use.

        Raises ``LogError`` for a key that others could have read, or that is none.
        """
        directory = self._directory("keys")
        path = directory / "trainer.key"
        try:
            with FileLock(directory / ".lock") as lock:
                if not lock.acquire(timeout=_LOCK_SECONDS):
                    raise LogError(f"{path}: another process has been creating the key")
                if not path.exists():
                    SigningKey.generate().save(path)
                return SigningKey.load(path)
        except (KeyFileError, OSError) as error:
            raise LogError(f"the workspace's signing key cannot be used: {error}") from error

    def attach_server(self) -> EmbeddedServer:
        """A share in the workspace's nats-server; its ``endpoint()`` starts the server."""
        return EmbeddedServer(self._directory("server"))

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
