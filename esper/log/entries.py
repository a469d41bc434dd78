"""Sealing what one writer adds to the registry."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec import UNSET

from esper.log.errors import LogError
from esper_events.certificate import Certificate
from esper_events.errors import CodecError, SegmentError
from esper_events.keys import PublicKey, SigningKey
from esper_events.place import Place
from esper_events.registry import (
    REGISTRY,
    REGISTRY_CODEC,
    RegistryBegun,
    RegistryEvent,
    WriterAdmitted,
    kind_of,
)
from esper_events.registry_chain import RegistryAdmission, RegistryVerifier
from esper_events.segment import seal


def _nobody(_root: PublicKey) -> None:
    return None


class Signer(NamedTuple):
    """The key to write with, and a root key's certificate for it, where there is one; in a registry
    of another root, ``vouched_by`` that root."""

    key: SigningKey
    certificate: Certificate | None
    vouched_by: Callable[[PublicKey], Certificate | None] = _nobody


def seal_entries(chain: RegistryVerifier, signer: Signer, events: Sequence[RegistryEvent]) -> bytes:
    """The segment that adds ``events`` to the registry that ``chain`` has read; before them what
    ``signer`` needs to be let in, which in an empty registry is its beginning.

    Raises ``LogError`` for a key that may not write, and for events that cannot stand there.
    """
    key, admission = signer.key, chain.admission.fork()
    chosen = [*_introduction(admission, signer), *events]
    place = Place(REGISTRY, key.public, 0, chain.events, chain.head)
    for event in chosen:
        reason = admission.admit(event, place)
        if reason is not None:
            raise LogError(f"{kind_of(event)} was not written in the registry: {reason}")
    try:
        encoded = [REGISTRY_CODEC.encode(event) for event in chosen]
        return seal(encoded, log=REGISTRY, first_index=chain.events, previous=chain.head, key=key)
    except (CodecError, SegmentError) as error:
        raise LogError(f"not written in the registry: {error}") from error


def _introduction(admission: RegistryAdmission, signer: Signer) -> tuple[RegistryEvent, ...]:
    now, key, certificate = time.time(), signer.key, signer.certificate
    if admission.root is None:
        vouched = UNSET if certificate is None else certificate
        return (RegistryBegun(time=now, writer=key.public.raw, certificate=vouched),)
    if admission.writer(key.public.id) is not None:
        return ()
    if certificate is None or certificate.root != admission.root.raw:
        certificate = signer.vouched_by(admission.root)
    if certificate is None:
        raise LogError(
            f"{key.public.fingerprint} may not write in the registry: "
            f"{admission.root.fingerprint}, which admits its writers, has not certified it (its "
            "workspace can: `esper runs --admit KEY`)"
        )
    return (WriterAdmitted(time=now, certificate=certificate),)
