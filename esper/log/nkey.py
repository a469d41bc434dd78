"""Key pairs in the text form by which NATS knows its users (prefix, key, CRC-16, base32)."""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_SEED = 18 << 3
_USER = 20 << 3


@dataclass(frozen=True)
class UserKey:
    """A fresh user: ``public`` goes into the server's configuration, ``seed`` to its clients."""

    seed: str = field(repr=False)
    public: str

    @classmethod
    def generate(cls) -> UserKey:
        """A key pair from the system's random source."""
        raw = os.urandom(32)
        private = Ed25519PrivateKey.from_private_bytes(raw)
        public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        seed_prefix = bytes([_SEED | _USER >> 5, (_USER & 31) << 3])
        return cls(_encode(seed_prefix + raw), _encode(bytes([_USER]) + public))


def _encode(data: bytes) -> str:
    checksum = binascii.crc_hqx(data, 0).to_bytes(2, "little")
    return base64.b32encode(data + checksum).decode().rstrip("=")
