"""Ed25519 keys (RFC 8032): signing, checking, and their files in the OpenSSH formats.

OpenSSL accepts public keys of small order, under which anyone can forge signatures; `PublicKey`
refuses them, and every encoding that is not canonical or no point of the curve.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from esper_events.errors import KeyFileError, PublicKeyError
from esper_events.files import read_private, whole_file

ALGORITHM = 0x01
"""First byte of a key id: Ed25519."""
KEY_ID_BYTES = 17
SIGNATURE_BYTES = 64
MAX_KEY_FILE_BYTES = 16 * 1024
KDF_ROUNDS = 64
"""Rounds of bcrypt between a pass phrase and the key that encrypts a key file: about a second."""

Unlock = Callable[[Path], bytes]
"""Finds the pass phrase of the encrypted key file at a path, or raises ``KeyFileError``."""

_NO_BCRYPT = "it needs the package bcrypt: pip install bcrypt"
_SSH_TYPE = b"ssh-ed25519"
_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
# y-coordinates of the eight points whose order divides 8: the identity, (0, -1), the two points
# with y = 0, and the four of order 8.
_Y8 = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)
_SMALL_ORDER_Y = frozenset({0, 1, _P - 1, _Y8, _P - _Y8})


class PublicKey:
    """An Ed25519 public key that is safe to trust a signature by.

    Raises:
        PublicKeyError: ``raw`` is not 32 bytes, not canonical, no point, or of small order.
    """

    __slots__ = ("_key", "id", "raw")

    def __init__(self, raw: bytes) -> None:
        _check_point(raw)
        self.raw = bytes(raw)
        self.id = bytes([ALGORITHM]) + hashlib.sha256(self.raw).digest()[: KEY_ID_BYTES - 1]
        """Algorithm byte and the first 16 bytes of SHA-256 of the key."""
        self._key = Ed25519PublicKey.from_public_bytes(self.raw)

    @property
    def digest(self) -> str:
        """SHA-256 of the key in hex: what commits to a key that is not shown yet."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def fingerprint(self) -> str:
        """What two people compare: ``ed25519:`` and `digest`."""
        return f"ed25519:{self.digest}"

    @property
    def openssh_fingerprint(self) -> str:
        """The same as ``ssh-keygen -l`` prints it: ``SHA256:`` and base64 without its padding."""
        blob = b"".join(len(part).to_bytes(4, "big") + part for part in (_SSH_TYPE, self.raw))
        return f"SHA256:{base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip('=')}"

    def vouches_for(self, key: PublicKey) -> bool:
        """Whether ``key`` is this one; see `esper_events.anchor`."""
        return key == self

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Whether ``signature`` (64 bytes) is this key's over ``data``."""
        try:
            self._key.verify(signature, data)
        except InvalidSignature:
            return False
        return True

    @classmethod
    def load(cls, path: Path) -> PublicKey:
        """Read an OpenSSH public key file (``ssh-ed25519 AAAA...``).

        Raises:
            KeyFileError: no such file, or no Ed25519 public key in it.
            PublicKeyError: a key that is refused.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                text = file.read(MAX_KEY_FILE_BYTES)
            key = serialization.load_ssh_public_key(text)
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise KeyFileError(f"{path}: no OpenSSH public key: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise KeyFileError(f"{path}: got a key of another algorithm, wanted Ed25519")
        return cls(key.public_bytes_raw())

    def save(self, path: Path) -> None:
        """Write an OpenSSH public key file; an existing file is replaced atomically.

        Raises:
            KeyFileError: the file cannot be written.
        """
        encoding, form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        text = self._key.public_bytes(encoding, form) + b" esper\n"
        try:
            with whole_file(Path(path), replace=True) as file:
                file.write(text)
        except OSError as error:
            raise KeyFileError(f"{path}: cannot write the key: {error}") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"PublicKey({self.fingerprint})"


class SigningKey:
    """An Ed25519 private key; it shows itself only as its public half."""

    __slots__ = ("_key", "public")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> SigningKey:
        """A fresh key from the system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path, unlock: Unlock | None = None) -> SigningKey:
        """Read an OpenSSH private key that only its owner can read; ``unlock`` is asked for the
        pass phrase of an encrypted one.

        Raises:
            KeyFileError: no such file, another owner, permissions that let others in, no Ed25519
                private key in it, or no pass phrase that fits.
        """
        path = Path(path)
        text = read_private(path, MAX_KEY_FILE_BYTES)
        key: object
        try:
            key = serialization.load_ssh_private_key(text, password=None)
        except TypeError:  # it is encrypted
            key = _decrypt(path, text, unlock)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise KeyFileError(f"{path}: no OpenSSH private key: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyFileError(f"{path}: got a key of another algorithm, wanted Ed25519")
        return cls(key)

    def save(self, path: Path, passphrase: bytes = b"") -> None:
        """Write the key with permissions 0600, durably; a reader never sees half a file.

        It is encrypted under ``passphrase``, where that is not empty.

        Raises:
            KeyFileError: the file exists (a key is never overwritten) or cannot be written.
        """
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
        try:
            text = self._key.private_bytes(pem, form, _encryption(passphrase))
            with whole_file(Path(path), 0o600) as file:
                file.write(text)
        except FileExistsError as error:
            raise KeyFileError(f"{path} exists already; a key is never overwritten") from error
        except OSError as error:
            raise KeyFileError(f"{path}: cannot write the key: {error}") from error
        except UnsupportedAlgorithm as error:
            raise KeyFileError(f"{path}: cannot encrypt the key: {_NO_BCRYPT}") from error

    def sign(self, data: bytes) -> bytes:
        """The 64-byte signature over ``data``."""
        return self._key.sign(data)

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.fingerprint})"


def _check_point(raw: bytes) -> None:
    if len(raw) != 32:
        raise PublicKeyError(f"got a public key of {len(raw)} bytes, wanted 32")
    y = int.from_bytes(raw, "little") & ((1 << 255) - 1)
    if y >= _P:
        raise PublicKeyError("the public key is not canonically encoded")
    if y in _SMALL_ORDER_Y:
        raise PublicKeyError("the public key has small order: anyone can sign under it")
    # RFC 8032, 5.1.3: x**2 = (y**2 - 1) / (d y**2 + 1) must have a root (Euler's criterion).
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P)
    if pow(square, (_P - 1) // 2, _P) != 1:
        raise PublicKeyError("the public key is no point of the curve")


def _decrypt(path: Path, text: bytes, unlock: Unlock | None) -> object:
    if unlock is None:
        raise KeyFileError(f"{path} is encrypted, and nothing here asks for its pass phrase")
    passphrase = unlock(path)
    try:
        return serialization.load_ssh_private_key(text, passphrase)
    except (ValueError, TypeError) as error:
        raise KeyFileError(
            f"{path}: the pass phrase does not fit, or the file is damaged"
        ) from error
    except UnsupportedAlgorithm as error:
        raise KeyFileError(f"{path}: cannot decrypt the key: {error} ({_NO_BCRYPT})") from error


def _encryption(passphrase: bytes) -> serialization.KeySerializationEncryption:
    if not passphrase:
        return serialization.NoEncryption()
    builder = serialization.PrivateFormat.OpenSSH.encryption_builder()
    return builder.kdf_rounds(KDF_ROUNDS).build(passphrase)
