"""Where runs that belong together keep what they share: their keys and the server."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from esper.log.errors import LogError
from esper.log.locks import FileLock
from esper.log.passphrase import passphrase
from esper.log.server import EmbeddedServer
from esper_events.certificate import (
    MAX_CERTIFICATE_BYTES,
    Certificate,
    Role,
    certify,
    check_certificate,
    decode_certificate,
    encode_certificate,
)
from esper_events.errors import CertificateError, KeyFileError
from esper_events.files import whole_file
from esper_events.keys import PublicKey, SigningKey

VARIABLE = "ESPER_WORKSPACE"
DEFAULT = ".esper"
TRAINER = "trainer"
ROOT = "root"

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
                self.create_key(TRAINER)
            return SigningKey.load(self.key_file(TRAINER), passphrase)
        except KeyFileError as error:
            raise LogError(f"the workspace's signing key cannot be used: {error}") from error

    def key_file(self, name: str) -> Path:
        """Where the key `TRAINER` lies that signs this workspace's runs, or `ROOT`, which vouches
        for it; the public half is beside it."""
        return self.path / "keys" / f"{name}.key"

    def create_key(self, name: str, secret: bytes = b"") -> None:
        """Make a key, encrypted under the pass phrase ``secret`` if that is not empty.

        Raises ``KeyExistsError`` where there is one already, ``KeyFileError`` or ``LogError`` when
        it cannot be written.
        """
        directory, path = self._directory("keys"), self.key_file(name)
        try:
            with FileLock(directory / ".lock") as lock:
                if not lock.acquire(timeout=_LOCK_SECONDS):
                    raise KeyFileError(f"{path}: another process has been creating it")
                if path.exists():
                    raise KeyExistsError(f"{path} exists already; a key is never overwritten")
                key = SigningKey.generate()
                key.save(path, secret)
                key.public.save(path.with_suffix(".pub"))
        except OSError as error:
            raise KeyFileError(f"{path}: cannot be created: {error}") from error

    def root_key(self) -> SigningKey:
        """The key that vouches for others; raises ``KeyFileError`` when it cannot be used."""
        return SigningKey.load(self.key_file(ROOT), passphrase)

    def certify(self) -> None:
        """Let the workspace's root key vouch for the key that signs its runs, from the next on.

        Raises ``KeyFileError`` or ``LogError`` when a key cannot be used.
        """
        root = self.root_key()
        certificate = certify(root, self.key().public, Role.TRAINER)
        try:
            with whole_file(self._certificate_file, replace=True) as file:
                file.write(encode_certificate(certificate))
        except OSError as error:
            raise KeyFileError(f"{self._certificate_file}: cannot be written: {error}") from error

    def certificate(self, key: PublicKey) -> Certificate | None:
        """What the root key says of ``key``, which signs runs; None in a workspace without a root.

        Raises ``LogError`` for a certificate that cannot be read, or does not vouch for ``key``.
        """
        path = self._certificate_file
        try:
            with path.open("rb") as file:
                certificate = decode_certificate(file.read(MAX_CERTIFICATE_BYTES + 1))
            check_certificate(certificate, key, Role.TRAINER, "")
        except FileNotFoundError:
            return None
        except (CertificateError, OSError) as error:
            raise LogError(f"{path}: {error}; `esper keys certify` writes a new one") from error
        return certificate

    @property
    def _certificate_file(self) -> Path:
        return self.path / "keys" / f"{TRAINER}.cert"

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
