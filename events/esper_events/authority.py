"""Who may write what in a log: the trainer that its first event names, the root behind that, the
keys that the root certifies later on, and the trainer that takes the run over."""

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
    RunTakenOver,
)
from esper_events.keys import PublicKey
from esper_events.place import Place

MAY_WRITE: dict[Role, frozenset[type[Event]]] = {
    Role.ROOT: frozenset({KeyCertified}),
    Role.TRAINER: frozenset(typing.get_args(Event)),
    Role.CONTROLLER: frozenset({ControllerConsulted, PlateauDetected}),
    Role.WORKER: frozenset({BlueprintRegistered}),
}
"""The kinds of event that a segment may hold, by the role of the key that signed it."""


class Authority:
    """Follows one log from its first event, beside `esper_events.rules.Rules`.

    Attributes: ``trainer``, the trainer's key that is in force, ``certificate``, a root key's for
    it, and ``root``, that root key; each None before the first event, and the last two in a log
    without a root.
    """

    def __init__(self) -> None:
        self.root: PublicKey | None = None
        self.trainer: PublicKey | None = None
        self.certificate: Certificate | None = None
        self._keys: dict[bytes, tuple[PublicKey, Role]] = {}

    def key(self, key_id: bytes) -> PublicKey | None:
        """The key with this id that may write in the log, if there is one."""
        known = self._keys.get(key_id)
        return None if known is None else known[0]

    def admit(self, event: Event, place: Place, index: int) -> str | None:
        """The reason why ``event`` cannot stand at ``index``, a place in ``place``, else None."""
        signer = place.signer
        try:
            if isinstance(event, RunStarted):
                return self._begin(event, place)
            known = self._keys.get(signer.id)
            if known is None:
                if isinstance(event, RunTakenOver):
                    return self._take_over(event, place)
                return f"{signer.fingerprint} has no role in this log"
            role = known[1]
            if type(event) not in MAY_WRITE[role]:
                kind = type(event).__struct_config__.tag
                return f"{signer.fingerprint} is a {role.value}'s key and may not write {kind}"
            if isinstance(event, KeyCertified):
                self._add(event.certificate, place.log)
            elif isinstance(event, RunTakenOver):
                return self._take_over(event, place)
        except CertificateError as error:
            return str(error)
        return None

    def _begin(self, event: RunStarted, place: Place) -> str | None:
        signer = place.signer
        if event.trainer_key != signer.raw:
            return f"the log names another key as its trainer's than {signer.fingerprint}"
        if event.certificate is not UNSET:
            self.root = check_certificate(event.certificate, signer, Role.TRAINER, place.log)
            self._keys[self.root.id] = self.root, Role.ROOT
            self.certificate = event.certificate
        self._keys[signer.id] = signer, Role.TRAINER
        self.trainer = signer
        return None

    def _take_over(self, event: RunTakenOver, place: Place) -> str | None:
        """The trainer's key goes on, or another that the root certifies comes into its place."""
        signer = place.signer
        if event.trainer_key != signer.raw:
            return f"run.taken_over names another key as its writer's than {signer.fingerprint}"
        if event.certificate is not UNSET:
            self._check_root(check_certificate(event.certificate, signer, Role.TRAINER, place.log))
        elif signer != self.trainer:
            return (
                f"{signer.fingerprint} takes the run over without a certificate, and the "
                "trainer's key is another"
            )
        if signer != self.trainer and self.trainer is not None:
            del self._keys[self.trainer.id]
            self._keys[signer.id] = signer, Role.TRAINER
            self.trainer, self.certificate = signer, event.certificate or None
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
        self._check_root(check_certificate(certificate, key, certificate.role, log))
        if key.id in self._keys:
            raise CertificateError(f"{key.fingerprint} has a role in this log already")
        self._keys[key.id] = key, certificate.role

    def _check_root(self, root: PublicKey) -> None:
        if self.root is None:
            raise CertificateError("a root certifies a key in a log that began without one")
        if root != self.root:
            raise CertificateError(
                f"the certificate is of the root {root.fingerprint}, the log's is "
                f"{self.root.fingerprint}"
            )
