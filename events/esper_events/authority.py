"""Who may write what in a log: the trainer that its first event names, the root behind that, and
the keys that the root certifies later on."""

from __future__ import annotations

import typing

from msgspec import UNSET

from esper_events.certificate import Certificate, Role, check_certificate
from esper_events.errors import CertificateError, PublicKeyError
from esper_events.events import (
    BlueprintRegistered,
    ControllerConsulted,
    Event,
    KeyCertified,
    PlateauDetected,
    RunStarted,
)
from esper_events.keys import PublicKey

MAY_WRITE: dict[Role, frozenset[type[Event]]] = {
    Role.ROOT: frozenset({KeyCertified}),
    Role.TRAINER: frozenset(typing.get_args(Event)),
    Role.CONTROLLER: frozenset({ControllerConsulted, PlateauDetected}),
    Role.WORKER: frozenset({BlueprintRegistered}),
}
"""The kinds of event that a segment may hold, by the role of the key that signed it."""


class Authority:
    """Follows one log from its first event, beside `esper_events.rules.Rules`; whoever appends and
    whoever audits ask the same.

    Attributes: ``root`` and ``certificate``, the root key that vouches for the trainer's and how it
    does; None before the first event, and in a log without a root.
    """

    def __init__(self) -> None:
        self.root: PublicKey | None = None
        self.certificate: Certificate | None = None
        self._keys: dict[bytes, tuple[PublicKey, Role]] = {}

    def key(self, key_id: bytes) -> PublicKey | None:
        """The key with this id that may write in the log, if there is one."""
        known = self._keys.get(key_id)
        return None if known is None else known[0]

    def admit(self, event: Event, signer: PublicKey, log: str) -> str | None:
        """The reason why ``event``, signed by ``signer``, cannot stand in ``log``, else None."""
        try:
            if isinstance(event, RunStarted):
                return self._begin(event, signer, log)
            known = self._keys.get(signer.id)
            if known is None:
                return f"{signer.fingerprint} has no role in this log"
            role = known[1]
            if type(event) not in MAY_WRITE[role]:
                kind = type(event).__struct_config__.tag
                return f"{signer.fingerprint} is a {role.value}'s key and may not write {kind}"
            if isinstance(event, KeyCertified):
                self._add(event.certificate, log)
        except CertificateError as error:
            return str(error)
        return None

    def _begin(self, event: RunStarted, signer: PublicKey, log: str) -> str | None:
        if event.trainer_key != signer.raw:
            return f"the log names another key as its trainer's than {signer.fingerprint}"
        if event.certificate is not UNSET:
            root = check_certificate(event.certificate, signer, Role.TRAINER, log)
            self.root, self.certificate = root, event.certificate
            self._keys[root.id] = root, Role.ROOT
        self._keys[signer.id] = signer, Role.TRAINER
        return None

    def _add(self, certificate: Certificate, log: str) -> None:
        if self.root is None:
            raise CertificateError("a key is certified in a log that began without a root")
        try:
            key = PublicKey(certificate.key)
        except PublicKeyError as error:
            raise CertificateError(f"the certificate is of no key: {error}") from error
        if certificate.role in (Role.ROOT, Role.TRAINER):
            raise CertificateError(f"a log has one {certificate.role.value}, from its first event")
        root = check_certificate(certificate, key, certificate.role, log)
        if root != self.root:
            raise CertificateError(
                f"the certificate is of the root {root.fingerprint}, the log's is "
                f"{self.root.fingerprint}"
            )
        if key.id in self._keys:
            raise CertificateError(f"{key.fingerprint} has a role in this log already")
        self._keys[key.id] = key, certificate.role
