"""The keys of a workspace: the one that signs its runs, the next, those before, and the root's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import count, takewhile
from pathlib import Path

from msgspec import UNSET

from esper.log.credentials import Credentials
from esper.log.errors import LogError
from esper.log.locks import FileLock
from esper.log.passphrase import passphrase
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
from esper_events.files import read_private, sync_directory, whole_file
from esper_events.keys import MAX_KEY_FILE_BYTES, PublicKey, SigningKey
from esper_events.revocation import Revocation, encode_revocation, load_revocation

TRAINER = "trainer"
NEXT = "next"
ROOT = "root"

_FRESH = "fresh"
"""What is to be `NEXT` when `NEXT` has become `TRAINER`; there only while keys are rotated."""
_RETIRED = "retired"
_REVOKED = "revoked"
_LOCK_SECONDS = 10.0


class KeyExistsError(KeyFileError):
    """A key was to be made where there is one."""


class Keyring:
    """The directory ``path``, which exists, with a file for each key: ``NAME.key``, beside it the
    public half, ``NAME.pub``, and what the root says of it, ``NAME.cert``.

    `TRAINER` signs the workspace's runs. `NEXT` is made with it, so that runs can commit to the key
    that comes after it. The keys before are kept: a run that was left under one of them passes
    through each of those after it when it is resumed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, name: str) -> Path:
        """Where the private half of the key ``name`` lies."""
        return self.path / f"{name}.key"

    def has(self, name: str) -> bool:
        """Whether there is a key of that name."""
        return self.file(name).exists()

    def load(self, name: str) -> SigningKey:
        """The key ``name``; raises ``KeyFileError`` when it cannot be used."""
        return SigningKey.load(self.file(name), passphrase)

    def public(self, name: str) -> PublicKey:
        """Its public half; raises ``KeyFileError``.

        No pass phrase is asked, but where that half was lost, or is of a workspace that had none:
        then the private one gives it again.
        """
        path = _beside(self.file(name), ".pub")
        if not path.exists() and self.has(name):
            self.load(name).public.save(path)
        return PublicKey.load(path)

    def line(self) -> list[str]:
        """The names of the keys that sign or have signed runs, in their order, up to `TRAINER`."""
        numbered = (f"{_RETIRED}/{number}" for number in count(1))
        return [*takewhile(self.has, numbered), TRAINER]

    def create(self, name: str, secret: bytes = b"") -> None:
        """Make a key, encrypted under the pass phrase ``secret`` if that is not empty; with
        `TRAINER`, `NEXT` too.

        Raises ``KeyExistsError`` where there is one already, ``KeyFileError`` when it cannot be
        written.
        """
        with self._locked():
            if self.has(name):
                raise KeyExistsError(
                    f"{self.file(name)} exists already; a key is never overwritten"
                )
            if name == TRAINER and not self.has(NEXT):
                self._make(NEXT, secret)
            self._make(name, secret)

    def rotate(self) -> None:
        """Let `NEXT` take the place of `TRAINER`, and make another, under the same pass phrase.

        Raises ``KeyFileError`` where there is no next key or it cannot be used, ``LogError`` where
        the root vouches for `TRAINER` but not for it.
        """
        with self._locked():
            pass  # What was interrupted is finished first.
        asked: list[bytes] = []

        def ask(path: Path) -> bytes:
            asked.append(passphrase(path))
            return asked[-1]

        following = SigningKey.load(self.file(NEXT), ask).public
        if self.certificate(TRAINER) and not self.certificate(NEXT):
            raise LogError(
                f"the root does not vouch for the next key, {following.fingerprint}, yet: "
                "`esper keys certify` lets it"
            )
        with self._locked():
            self._make(_FRESH, asked[-1] if asked else b"")
            self._retire()
            self.file(NEXT).replace(self.file(TRAINER))
            self._finish_rotation()

    def credentials(self, name: str = TRAINER) -> Credentials:
        """What a log says of the key ``name`` when that begins to write in it.

        Raises ``LogError`` for a certificate of another key, ``KeyFileError``.
        """
        line = [*self.line(), NEXT]
        after = line[line.index(name) + 1]
        return Credentials(
            self.public(name).raw,
            self.certificate(name) or UNSET,
            self.public(after).digest if self.has(after) else UNSET,
        )

    def certify(self) -> None:
        """Let the root's key vouch for `TRAINER`, made where there is none, and for `NEXT`; raises
        ``KeyFileError``."""
        with contextlib.suppress(KeyExistsError):
            self.create(TRAINER)
        root = self.load(ROOT)
        for name in filter(self.has, (TRAINER, NEXT)):
            certificate = certify(root, self.public(name), Role.TRAINER)
            self._write(_beside(self.file(name), ".cert"), encode_certificate(certificate))

    def vouched_by(self, root: PublicKey, log: str) -> Certificate | None:
        """A certificate of `TRAINER` for ``log`` by the key ``root``, where that is one before it.

        Raises ``KeyFileError``.
        """
        for name in self.line()[:-1]:
            if self.public(name) == root:
                return certify(self.load(name), self.public(TRAINER), Role.TRAINER, log)
        return None

    def certificate(self, name: str = TRAINER) -> Certificate | None:
        """What the root says of the key ``name``; None where it says nothing.

        Raises ``LogError`` for a certificate that cannot be read, or is of another key.
        """
        path = _beside(self.file(name), ".cert")
        try:
            with path.open("rb") as file:
                certificate = decode_certificate(file.read(MAX_CERTIFICATE_BYTES + 1))
            check_certificate(certificate, self.public(name), Role.TRAINER, "")
        except FileNotFoundError:
            return None
        except (CertificateError, OSError) as error:
            raise LogError(f"{path}: {error}; `esper keys certify` writes a new one") from error
        return certificate

    def keep(self, told: Revocation) -> Path:
        """Write down that the root took a key back, and the file for whoever verifies.

        `NEXT` is put away when it is taken back from every log. Raises ``KeyFileError``.
        """
        digest = PublicKey(told.key).digest
        where = f"-{told.log.replace('/', '-')}" if told.log else ""
        path = self.path / _REVOKED / f"{digest}{where}.revocation"
        with self._locked():
            self._write(path, encode_revocation(told))
            if not told.log and self.has(NEXT) and self.public(NEXT).digest == digest:
                for suffix in (".cert", ".pub", ".key"):
                    self._move(NEXT, f"{_REVOKED}/{digest}", suffix)
        return path

    def revocations(self) -> list[Revocation]:
        """What the root has taken back here; raises ``RevocationError``."""
        return [
            load_revocation(path) for path in sorted((self.path / _REVOKED).glob("*.revocation"))
        ]

    def require_trusted(self, key: PublicKey) -> None:
        """Raise ``KeyFileError`` if the root has taken ``key`` back from every log."""
        if any(told.key == key.raw and not told.log for told in self.revocations()):
            raise KeyFileError(f"the root has revoked {key.fingerprint}: `esper keys rotate`")

    def _make(self, name: str, secret: bytes) -> None:
        key = SigningKey.generate()
        # There is a key when there is its private half: whoever is killed here has made none.
        key.public.save(_beside(self.file(name), ".pub"))
        key.save(self.file(name), secret)

    def _retire(self) -> None:
        *before, _ = self.line()
        if before and self.public(before[-1]) == self.public(TRAINER):
            return  # It was kept before the rotation was interrupted.
        name = f"{_RETIRED}/{len(before) + 1}"
        for suffix in (".cert", ".pub"):
            path = _beside(self.file(TRAINER), suffix)
            if path.exists():
                self._write(_beside(self.file(name), suffix), path.read_bytes())
        private = read_private(self.file(TRAINER), MAX_KEY_FILE_BYTES)
        self._write(self.file(name), private, 0o600)

    def _finish_rotation(self) -> None:
        """Go on where a rotation was interrupted, if one was.

        It counts once `NEXT` has become `TRAINER`; until then it is undone. Each step leaves what
        the ones behind it need.
        """
        fresh = self.file(_FRESH)
        public = _beside(fresh, ".pub")
        if self.has(NEXT):
            fresh.unlink(missing_ok=True)
            public.unlink(missing_ok=True)
        elif fresh.exists():
            if public.exists():
                self._move(NEXT, TRAINER, ".cert")
                self._move(NEXT, TRAINER, ".pub")
                self._move(_FRESH, NEXT, ".pub")
            self._move(_FRESH, NEXT, ".key")
        sync_directory(self.path)

    def _move(self, source: str, target: str, suffix: str) -> None:
        path = _beside(self.file(source), suffix)
        if path.exists():
            path.replace(_beside(self.file(target), suffix))

    def _write(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with whole_file(path, mode, replace=True) as file:
                file.write(data)
        except OSError as error:
            raise KeyFileError(f"{path}: cannot be written: {error}") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """No other process changes the keys meanwhile, and no change of theirs is half done."""
        try:
            with FileLock(self.path / ".lock") as lock:
                if not lock.acquire(timeout=_LOCK_SECONDS):
                    raise KeyFileError(f"{self.path}: another process has been changing the keys")
                self._finish_rotation()
                yield
        except OSError as error:
            raise KeyFileError(f"{self.path}: keys cannot be changed: {error}") from error


def _beside(path: Path, suffix: str) -> Path:
    return path.with_suffix(suffix)
