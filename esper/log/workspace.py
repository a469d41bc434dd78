"""Where runs that belong together keep what they share: the trainer's key and the server."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from esper.log.errors import LogError
from esper.log.locks import FileLock
from esper.log.passphrase import passphrase
from esper.log.server import EmbeddedServer
from esper_events.errors import KeyFileError
from esper_events.keys import SigningKey

VARIABLE = "ESPER_WORKSPACE"
DEFAULT = ".esper"

_LOCK_SECONDS = 10.0


class KeyExistsError(KeyFileError):
    """A key was to be made where there is one."""


class Workspace:
    """The directory ``path``, else ``$ESPER_WORKSPACE``, else ``.esper`` where one stands.

    It is created when it is first needed, for its owner only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = Path(path or os.environ.get(VARIABLE) or DEFAULT).absolute()

    def key(self) -> SigningKey:
        """The key that signs this workspace's runs; created at its first use.

        Raises ``LogError`` for a key that others could have read, that no pass phrase opens, or
        that is none.
        """
        try:
            with contextlib.suppress(KeyExistsError):
                self.create_key()
            return SigningKey.load(self.key_file, passphrase)
        except KeyFileError as error:
            raise LogError(f"the workspace's signing key cannot be used: {error}") from error

    @property
    def key_file(self) -> Path:
        """Where the key lies that signs this workspace's runs."""
        return self.path / "keys" / "trainer.key"

    def create_key(self, secret: bytes = b"") -> None:
        """Make the workspace's key, encrypted under the pass phrase ``secret`` if it is not empty.

        Raises ``KeyExistsError`` where there is one already, ``KeyFileError`` or ``LogError`` when
        it cannot be written.
        """
        directory = self._directory("keys")
        try:
            with FileLock(directory / ".lock") as lock:
                if not lock.acquire(timeout=_LOCK_SECONDS):
                    raise KeyFileError(f"{self.key_file}: another process has been creating it")
                if self.key_file.exists():
                    raise KeyExistsError(f"{self.key_file} exists already")
                SigningKey.generate().save(self.key_file, secret)
        except OSError as error:
            raise KeyFileError(f"{self.key_file}: cannot be created: {error}") from error

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
