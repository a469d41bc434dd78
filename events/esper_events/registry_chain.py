"""Following a registry segment by segment: who may write in it, and whether it is whole."""

from __future__ import annotations

from msgspec import UNSET

from esper_events.any_chain import Chain, Founder
from esper_events.certificate import Certificate, Role, check_certificate
from esper_events.checkpoint import parse_checkpoint
from esper_events.codec import Codec
from esper_events.errors import CertificateError, PublicKeyError, RevocationError
from esper_events.keys import PublicKey
from esper_events.place import Place
from esper_events.registry import (
    REGISTRY,
    REGISTRY_CODEC,
    HeadRecorded,
    RegistryBegun,
    RegistryEvent,
    RegistryRecord,
    WriterAdmitted,
    WriterRevoked,
)
from esper_events.registry_rules import RegistryRules
from esper_events.revocation import Revocation, check_revocation
from esper_events.segment import Segment


class RegistryAdmission:
    """Follows one registry from its first event: what it may say, and who may write in it.

    Attributes: ``rules``; ``root``, the key that admits writers: the root that vouches for the
    first writer, else that writer's own; ``founder``, the first writer's key; both None before the
    first event; ``known``, see `RegistryVerifier`.
    """

    def __init__(self) -> None:
        self.known = False
        self.rules = RegistryRules()
        self.root: PublicKey | None = None
        self.founder: PublicKey | None = None
        self._writers: dict[bytes, PublicKey] = {}
        self._revoked: set[bytes] = set()
        """Raw keys that the root has taken back."""

    def fork(self) -> RegistryAdmission:
        """An admission that stands where this one does, and goes its own way."""
        other = RegistryAdmission()
        other.rules, other.root, other.founder = self.rules.fork(), self.root, self.founder
        other._writers, other._revoked = self._writers.copy(), self._revoked.copy()
        return other

    def writer(self, key_id: bytes) -> PublicKey | None:
        """The key with this id that was admitted, if there is one."""
        return self._writers.get(key_id)

    def may_write(self, key: PublicKey) -> bool:
        """Whether ``key`` was admitted and not taken back."""
        return key.id in self._writers and key.raw not in self._revoked

    def admit(self, event: RegistryEvent, place: Place) -> str | None:
        """Take ``event`` as the next one; the reason if it cannot stand there, else None."""
        try:
            return (
                self._check_writer(event, place)
                or self.rules.admit(event)
                or self._check_signed(event)
            )
        except (CertificateError, RevocationError) as error:
            return str(error)

    def _check_writer(self, event: RegistryEvent, place: Place) -> str | None:
        if place.log != REGISTRY:
            return f"a registry is log {REGISTRY!r}, this is {place.log!r}"
        if place.epoch:
            return f"lease epoch {place.epoch} in the registry, which has none"
        if isinstance(event, RegistryBegun) and self.root is None:
            return self._begin(event, place.signer)
        if isinstance(event, WriterAdmitted):
            self._add(event.certificate)
        if place.signer.raw in self._revoked:
            return f"{place.signer.fingerprint} was taken back and may not write any more"
        if place.signer.id not in self._writers:
            return f"{place.signer.fingerprint} was never admitted to write in the registry"
        return None

    def _begin(self, event: RegistryBegun, signer: PublicKey) -> str | None:
        if event.writer != signer.raw:
            return f"the registry names another key as its first writer's than {signer.fingerprint}"
        self.root = self.founder = signer
        if event.certificate is not UNSET:
            self.root = check_certificate(event.certificate, signer, Role.TRAINER, REGISTRY)
        self._writers[signer.id] = signer
        return None

    def _add(self, certificate: Certificate) -> None:
        try:
            key = PublicKey(certificate.key)
        except PublicKeyError as error:
            raise CertificateError(f"the certificate is of no key: {error}") from error
        root = check_certificate(certificate, key, Role.TRAINER, REGISTRY)
        if root != self.root:
            wanted = "nobody" if self.root is None else self.root.fingerprint
            raise CertificateError(
                f"{key.fingerprint} is certified by {root.fingerprint}; who admits writers here is "
                f"{wanted}"
            )
        if key.id in self._writers:
            raise CertificateError(f"{key.fingerprint} has been admitted before")
        self._writers[key.id] = key

    def _revoke(self, revocation: Revocation) -> str | None:
        root, key = check_revocation(revocation)
        if root != self.root:
            return f"the revocation is of the root {root.fingerprint}, which admits nobody here"
        if revocation.log not in ("", REGISTRY):
            return f"the revocation is for log {revocation.log!r}, this is {REGISTRY!r}"
        if key.raw in self._revoked:
            return f"{key.fingerprint} was taken back before"
        self._revoked.add(key.raw)
        return None

    def _check_signed(self, event: RegistryEvent) -> str | None:
        """What is signed within the event: a revocation by the root, a head by the run's own
        trainer, or by a writer here, who may have taken the run over."""
        if isinstance(event, WriterRevoked):
            return self._revoke(event.revocation)
        if self.known or not isinstance(event, HeadRecorded):
            return None
        signed = parse_checkpoint(event.note)
        keys = (self.rules.runs[event.log].trainer, *self._writers.values())
        if any(signed.is_signed_by(key) for key in keys if key.raw not in self._revoked):
            return None
        return (
            f"the head of run {event.log} is signed neither by its trainer's key nor by that of a "
            "writer of the registry"
        )


class RegistryVerifier(Chain[RegistryEvent, RegistryRecord]):
    """The chain of a registry.

    Attributes, besides those of every chain: ``admission``, what may stand in it next. While
    ``admission.known`` is True signatures are taken for good: these bytes were verified before, and
    are held against a source that was. The hashes are followed all the same.
    """

    genesis = "registry.begun"

    def __init__(self) -> None:
        super().__init__()
        self.admission = RegistryAdmission()

    @property
    def key(self) -> PublicKey | None:
        """The first writer's key; None before the first segment."""
        return self.admission.founder

    def is_signed(self, segment: Segment, key: PublicKey) -> bool:
        """See ``Chain``."""
        return self.admission.known or super().is_signed(segment, key)

    @property
    def codec(self) -> Codec[RegistryEvent]:
        """See ``Chain``."""
        return REGISTRY_CODEC

    def founder(self, event: RegistryEvent) -> Founder | None:
        """See ``Chain``."""
        return (
            Founder(event.writer, event.certificate) if isinstance(event, RegistryBegun) else None
        )

    def introduced(self, event: RegistryEvent) -> bytes | None:
        """See ``Chain``."""
        return event.certificate.key if isinstance(event, WriterAdmitted) else None

    def writer(self, key_id: bytes) -> PublicKey | None:
        """See ``Chain``."""
        return self.admission.writer(key_id)

    def admit(self, event: RegistryEvent, place: Place, index: int) -> str | None:
        """See ``Chain``."""
        return self.admission.admit(event, place)

    def record(self, index: int, event: RegistryEvent) -> RegistryRecord:
        """See ``Chain``."""
        return RegistryRecord(index, event)
