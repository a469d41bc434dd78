"""Certificates: a root key says that another key is of a role, in one log or in all of them.

The root key signs nothing else. It can lie elsewhere, and who knows its fingerprint need not know
the keys of today.
"""

from __future__ import annotations

import enum

import msgspec

from esper_events.errors import CertificateError, PublicKeyError
from esper_events.keys import SIGNATURE_BYTES, PublicKey, SigningKey
from esper_events.statement import StatementReader, encode_statement, unsigned_bytes

DOMAIN = b"esper.certificate.v1\x00"
"""Prefix of the signed bytes: a signature over a certificate means nothing anywhere else."""
MAX_CERTIFICATE_BYTES = 1024


class Role(enum.Enum):
    """What a key is for; that of a root key no certificate says."""

    ROOT = "root"
    TRAINER = "trainer"
    CONTROLLER = "controller"
    WORKER = "worker"


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The owner of ``root`` vouches for ``key``; both are raw Ed25519 public keys.

    ``log`` is the log that it counts in, "" where it counts in every log of the root. What is
    signed is `DOMAIN` and the canonical bytes of the certificate with an empty signature.
    """

    root: bytes
    key: bytes
    role: Role
    log: str
    signature: bytes

    def signed_bytes(self) -> bytes:
        """What ``signature`` is over."""
        return DOMAIN + unsigned_bytes(self)


_reader = StatementReader(Certificate, "certificate", MAX_CERTIFICATE_BYTES, CertificateError)


def certify(root: SigningKey, key: PublicKey, role: Role, log: str = "") -> Certificate:
    """The certificate of ``key``, signed by ``root``."""
    blank = Certificate(root=root.public.raw, key=key.raw, role=role, log=log, signature=b"")
    return msgspec.structs.replace(blank, signature=root.sign(blank.signed_bytes()))


def encode_certificate(certificate: Certificate) -> bytes:
    """Its canonical bytes, as they stand in an event."""
    return encode_statement(certificate)


def decode_certificate(data: bytes) -> Certificate:
    """The certificate whose canonical bytes are ``data``, unchecked.

    Raises:
        CertificateError: ``data`` is longer than `MAX_CERTIFICATE_BYTES`, or anything else.
    """
    return _reader.decode(data)


def check_certificate(certificate: Certificate, key: PublicKey, role: Role, log: str) -> PublicKey:
    """The root key that vouches for ``key`` as ``role`` in ``log``.

    Raises:
        CertificateError: ``certificate`` is of another key, role or log, or not signed by the root
            that it names; a root is a key that is trusted only if the caller knows it.
    """
    try:
        root = PublicKey(certificate.root)
    except PublicKeyError as error:
        raise CertificateError(f"the certificate names no root: {error}") from error
    reason = None
    if certificate.key != key.raw:
        reason = f"the certificate is of another key than {key.fingerprint}"
    elif certificate.role is not role:
        reason = f"{key.fingerprint} is certified as {certificate.role.value}, not as {role.value}"
    elif certificate.log not in ("", log):
        reason = f"the certificate is for log {certificate.log!r}, this is {log!r}"
    elif len(certificate.signature) != SIGNATURE_BYTES or not root.verify(
        certificate.signature, certificate.signed_bytes()
    ):
        reason = (
            f"the signature of the root {root.fingerprint} does not fit the certificate of "
            f"{key.fingerprint}"
        )
    if reason is not None:
        raise CertificateError(reason)
    return root
