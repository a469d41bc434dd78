"""Who may write what in a log: the trainer that its first event names and who comes after it, the
root behind that, and the keys that the root certifies or revokes."""

from __future__ import annotations

import typing
from typing import NamedTuple

from msgspec import UNSET, UnsetType

from esper_events.certificate import Certificate, Role, check_certificate
from esper_events.checkpoint import SignedCheckpoint
from esper_events.distrust import Distrust
from esper_events.errors import CertificateError, PublicKeyError, RevocationError
from esper_events.events import (
    OF_WRITERS,
    BlueprintRegistered,
    ControllerConsulted,
    Event,
    KeyCertified,
    KeyRevoked,
    KeyRotated,
    PlateauDetected,
    RunStarted,
    RunTakenOver,
)
from esper_events.keys import PublicKey
from esper_events.place import Place
from esper_events.tenure import Tenure

MAY_WRITE: dict[Role, frozenset[type[Event]]] = {
    Role.ROOT: frozenset({KeyCertified, KeyRevoked}),
    Role.TRAINER: frozenset(typing.get_args(Event)),
    Role.CONTROLLER: frozenset({ControllerConsulted, PlateauDetected}),
    Role.WORKER: frozenset({BlueprintRegistered}),
}
"""The kinds of event that a segment may hold, by the role of the key that signed it."""


class _Holder(NamedTuple):
    """A key with its role; ``plain`` are the kinds that it may write and that change nothing here,
    at hand because they are asked for at every event."""

    key: PublicKey
    role: Role
    plain: frozenset[type[Event]]

    @classmethod
    def of(cls, key: PublicKey, role: Role) -> _Holder:
        return cls(key, role, MAY_WRITE[role].difference(OF_WRITERS))


class Authority:
    """Follows one log from its first event, beside `esper_events.rules.Rules`.

    Attributes: ``root``, the root key that vouches for the trainer's, None in a log without one;
    ``tenures``, the trainer's keys one after the other; ``distrust``, of keys that were revoked.
    """

    def __init__(self) -> None:
        self.root: PublicKey | None = None
        self.tenures: list[Tenure] = []
        self.distrust = Distrust()
        self._keys: dict[bytes, _Holder] = {}
        self._former: dict[bytes, tuple[PublicKey, str]] = {}
        """Keys that may write no more, and why."""
        self._barred: set[bytes] = set()
        """Those of them that never come back."""

    @property
    def trainer(self) -> PublicKey | None:
        """The trainer's key that may write now, None before the first event and once revoked."""
        last = self.tenures[-1].key if self.tenures else None
        return last if last is not None and self.may_write(last) else None

    def may_write(self, key: PublicKey) -> bool:
        """Whether ``key`` has a role in the log now."""
        return key.id in self._keys

    def key(self, key_id: bytes) -> PublicKey | None:
        """The key with this id that has or had a role in the log, if there is one."""
        known = self._keys.get(key_id) or self._former.get(key_id)
        return None if known is None else known[0]

    @property
    def known(self) -> list[PublicKey]:
        """The keys that have or had a role in the log."""
        held = [holder.key for holder in self._keys.values()]
        return held + [key for key, _ in self._former.values()]

    def tenure_at(self, size: int) -> Tenure | None:
        """The trainer's key in force after the first ``size`` events."""
        return next((t for t in reversed(self.tenures) if t.since < size), None)

    def refuses(self, signed: SignedCheckpoint, name: str) -> str | None:
        """Why the checkpoint, which is called ``name``, is not one of the trainer's key that was in
        force when the log had that many events, else None."""
        size = signed.checkpoint.size
        tenure = self.tenure_at(size)
        signer = next((t.key for t in self.tenures if signed.is_signed_by(t.key)), None)
        if signer is None or tenure is None:
            return f"{name}: the signature does not fit its text and the log's key"
        bound = self.distrust.bound(signer)
        if bound is not None and size > bound.since:
            return f"{name} counts {size} events and is signed by {bound}"
        if signer != tenure.key:
            return (
                f"{signer.fingerprint} signed {name} of {size} events, when "
                f"{tenure.key.fingerprint} was the trainer's key"
            )
        return None

    def admit(self, event: Event, place: Place, index: int) -> str | None:
        """The reason why ``event`` cannot stand at ``index``, a place in ``place``, else None."""
        signer = place.signer
        self.distrust.note(place, index)
        known = self._keys.get(signer.id)
        if known is not None:
            if type(event) in known.plain:
                return None
            if type(event) not in MAY_WRITE[known.role]:
                kind, role = type(event).__struct_config__.tag, known.role.value
                return f"{signer.fingerprint} is a {role}'s key and may not write {kind}"
        try:
            return self._change(event, place, index)
        except (CertificateError, RevocationError) as error:
            return str(error)

    def _change(self, event: Event, place: Place, index: int) -> str | None:
        signer = place.signer
        if signer.id in self._barred:
            return self.no_more(signer)
        match event:
            case RunStarted():
                return self._begin(event, place)
            case KeyRotated():
                return self._rotate(event, place, index)
            case RunTakenOver():
                return self._take_over(event, place, index)
        if signer.id not in self._keys:
            return self.no_more(signer)
        if isinstance(event, KeyCertified):
            self._certify(event.certificate, place.log)
        elif isinstance(event, KeyRevoked):
            key = self.distrust.revoke(event.revocation, self.root, index)
            self._former.pop(key.id, None)
            self._dismiss(key, f"the root revoked it at event {index}", for_good=True)
        return None

    def no_more(self, key: PublicKey) -> str:
        """Why ``key`` may not write."""
        if key.id in self._former:
            return f"{key.fingerprint} may write no more: {self._former[key.id][1]}"
        return f"{key.fingerprint} has no role in this log"

    def _begin(self, event: RunStarted, place: Place) -> str | None:
        signer = place.signer
        if event.trainer_key != signer.raw:
            return f"the log names another key as its trainer's than {signer.fingerprint}"
        if event.certificate is not UNSET:
            self.root = check_certificate(event.certificate, signer, Role.TRAINER, place.log)
            self._keys[self.root.id] = _Holder.of(self.root, Role.ROOT)
        self._appoint(signer, 0, event.certificate, event.next_key)
        return None

    def _rotate(self, event: KeyRotated, place: Place, index: int) -> str | None:
        """The key that the log committed to comes into the trainer's place, by its own signature:
        the one before may be stolen, lost or revoked."""
        signer, last = place.signer, self.tenures[-1]
        reason = None
        if event.trainer_key != signer.raw:
            reason = f"key.rotated names another key than {signer.fingerprint}, which signed it"
        elif signer == last.key:
            reason = f"{signer.fingerprint} is rotated to, and is the trainer's key already"
        elif last.next_key is None:
            reason = f"{signer.fingerprint} is rotated to, and the log has committed to no next key"
        elif last.next_key != signer.digest:
            reason = (
                f"{signer.fingerprint} is rotated to, and the next key that the log has committed "
                f"to is ed25519:{last.next_key}"
            )
        if reason is not None:
            return reason
        self._check_vouched(event.certificate, place)
        self._dismiss(last.key, f"its key was rotated at event {index}", for_good=True)
        self._appoint(signer, index, event.certificate, event.next_key)
        return None

    def _take_over(self, event: RunTakenOver, place: Place, index: int) -> str | None:
        """The trainer's key goes on, or another comes into its place: one that the root certifies,
        or, in a log without a root, the one that it has committed to."""
        signer, last = place.signer, self.tenures[-1]
        if event.trainer_key != signer.raw:
            return f"run.taken_over names another key as its writer's than {signer.fingerprint}"
        if signer == last.key:
            return self._keep(event, place)
        if event.certificate is UNSET and last.next_key != signer.digest:
            return (
                f"{signer.fingerprint} takes the run over without a certificate, and the "
                "trainer's key is another"
            )
        self._check_vouched(event.certificate, place)
        self._dismiss(last.key, f"the run was taken over from it at event {index}")
        self._appoint(signer, index, event.certificate, event.next_key)
        return None

    def _keep(self, event: RunTakenOver, place: Place) -> str | None:
        if event.next_key is not UNSET:
            return "run.taken_over by the trainer's own key commits to another next key"
        if event.certificate is not UNSET:
            self._check_vouched(event.certificate, place)
        return None

    def _appoint(
        self,
        key: PublicKey,
        index: int,
        certificate: Certificate | UnsetType,
        next_key: str | UnsetType,
    ) -> None:
        self._former.pop(key.id, None)
        self._keys[key.id] = _Holder.of(key, Role.TRAINER)
        self.tenures.append(Tenure(key, index, certificate or None, next_key or None))

    def _dismiss(self, key: PublicKey, why: str, *, for_good: bool = False) -> None:
        self._keys.pop(key.id, None)
        self._former.setdefault(key.id, (key, why))
        if for_good:
            self._barred.add(key.id)

    def _certify(self, certificate: Certificate, log: str) -> None:
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
        if key.id in self._former:
            raise CertificateError(self.no_more(key))
        self._keys[key.id] = _Holder.of(key, certificate.role)

    def _check_vouched(self, certificate: Certificate | UnsetType, place: Place) -> None:
        """A log with a root has trainers of that root alone."""
        if certificate is not UNSET:
            self._check_root(check_certificate(certificate, place.signer, Role.TRAINER, place.log))
        elif self.root is not None:
            raise CertificateError(
                f"{place.signer.fingerprint} comes without a certificate into a log of the root "
                f"{self.root.fingerprint}"
            )

    def _check_root(self, root: PublicKey) -> None:
        if self.root is None:
            raise CertificateError("a root certifies a key in a log that began without one")
        if root != self.root:
            raise CertificateError(
                f"the certificate is of the root {root.fingerprint}, the log's is "
                f"{self.root.fingerprint}"
            )
