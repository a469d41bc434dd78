"""A root key that vouches for the trainer's: what it shows to who knows the root alone, and the
certificates that somebody forges who knows the format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_events.anchor import Fingerprint
from esper_events.certificate import (
    DOMAIN,
    Certificate,
    Role,
    certify,
    decode_certificate,
    encode_certificate,
)
from esper_events.checkpoint import parse_checkpoint
from esper_events.codec import encode_event
from esper_events.errors import CertificateError
from esper_events.events import Event
from esper_events.keys import SigningKey
from esper_events.prove import prove_event, prove_growth
from esper_events.verify import verify_path
from esper_events.verify_proof import verify_proof
from support.event_runs import LOG, Run, ended, make_run, opening, started

ROOT, TRAINER, THIEF = (SigningKey.generate() for _ in range(3))
GOOD = certify(ROOT, TRAINER.public, Role.TRAINER)
KNOWN = Fingerprint(ROOT.public.fingerprint)


def certified(certificate: Certificate, key: SigningKey = TRAINER) -> Run:
    (_, *first), *rest = opening(key)
    genesis: Event = msgspec.structs.replace(started(key), certificate=certificate)
    return make_run(key, ((genesis, *first), *rest, (ended(),)))


RUN = certified(GOOD)


@pytest.mark.parametrize(
    "anchor",
    [KNOWN, Fingerprint(ROOT.public.openssh_fingerprint), ROOT.public, TRAINER.public,
     Fingerprint(TRAINER.public.fingerprint), None],
)  # fmt: skip
def test_a_run_is_known_by_its_root_and_by_its_key(
    tmp_path: Path, anchor: Fingerprint | None
) -> None:
    RUN.write(tmp_path)
    report = verify_path(tmp_path, anchor)
    assert report.ok, report.message
    assert (report.key, report.root) == (TRAINER.public.fingerprint, ROOT.public.fingerprint)
    assert f", certified by the root {ROOT.public.fingerprint}" in report.message


def test_a_run_without_a_root_is_what_it_was(tmp_path: Path, run: Run) -> None:
    assert b"certificate" not in encode_event(started(TRAINER))
    run.write(tmp_path)
    report = verify_path(tmp_path)
    assert report.ok
    assert report.root == ""
    assert "root" not in report.message
    report = verify_path(tmp_path, KNOWN)
    assert not report.ok
    key = run.key.public.fingerprint
    assert f"the trainer's key is {key}, wanted {KNOWN.fingerprint}" in report.message


def signed_elsewhere() -> Certificate:
    """The root's signature over the same bytes, for another purpose."""
    blank = msgspec.structs.replace(GOOD, signature=b"")
    return msgspec.structs.replace(
        GOOD, signature=ROOT.sign(GOOD.signed_bytes().removeprefix(DOMAIN) + blank.key)
    )


FORGED: dict[str, tuple[Run, str]] = {
    "made up whole under a root of the thief's": (
        certified(certify(THIEF, THIEF.public, Role.TRAINER), THIEF),
        f"certified by the root {THIEF.public.fingerprint}, wanted {KNOWN.fingerprint}",
    ),
    "signed by the thief, who names the root": (
        certified(
            msgspec.structs.replace(
                certify(THIEF, THIEF.public, Role.TRAINER), root=ROOT.public.raw
            ),
            THIEF,
        ),
        f"the signature of the root {ROOT.public.fingerprint} does not fit the certificate of "
        f"{THIEF.public.fingerprint}",
    ),
    "the certificate of another key, spliced from a good log": (
        certified(GOOD, THIEF),
        f"the certificate is of another key than {THIEF.public.fingerprint}",
    ),
    "the same, made out to the thief": (
        certified(msgspec.structs.replace(GOOD, key=THIEF.public.raw), THIEF),
        "does not fit the certificate of",
    ),
    "for another log": (
        certified(certify(ROOT, TRAINER.public, Role.TRAINER, "run-2")),
        f"the certificate is for log 'run-2', this is '{LOG}'",
    ),
    "for another log, made out to this one": (
        certified(
            msgspec.structs.replace(certify(ROOT, TRAINER.public, Role.TRAINER, "run-2"), log=LOG)
        ),
        "does not fit the certificate of",
    ),
    "signed for another purpose": (certified(signed_elsewhere()), "does not fit the certificate"),
    "a signature too short": (
        certified(msgspec.structs.replace(GOOD, signature=GOOD.signature[:-1])),
        "does not fit the certificate",
    ),
    "a root of small order": (
        certified(msgspec.structs.replace(GOOD, root=bytes(32))),
        "the certificate names no root: the public key has small order",
    ),
}


@pytest.mark.parametrize("forgery", FORGED)
def test_a_forged_certificate_is_refused_in_a_run(forgery: str, tmp_path: Path) -> None:
    run, reason = FORGED[forgery]
    run.write(tmp_path)
    for anchor in (KNOWN, ROOT.public):
        report = verify_path(tmp_path, anchor)
        assert not report.ok
        assert reason in report.message
        assert "event 0: " in report.message


@pytest.mark.parametrize("forgery", list(FORGED)[1:])
def test_a_forged_certificate_is_refused_where_nothing_is_pinned(
    forgery: str, tmp_path: Path
) -> None:
    run, reason = FORGED[forgery]
    run.write(tmp_path)
    report = verify_path(tmp_path)
    assert not report.ok
    assert reason in report.message


@pytest.fixture
def proofs(tmp_path: Path) -> tuple[Path, Path]:
    RUN.write(tmp_path / "run")
    kept = parse_checkpoint(make_run(TRAINER, RUN.groups[:-1]).note)
    event, growth = tmp_path / "event", tmp_path / "growth"
    event.write_bytes(prove_event(tmp_path / "run", 4).text())
    growth.write_bytes(prove_growth(tmp_path / "run", kept).text())
    return event, growth


def test_proofs_hold_under_the_fingerprint_of_the_root(proofs: tuple[Path, Path]) -> None:
    kept = parse_checkpoint(make_run(TRAINER, RUN.groups[:-1]).note)
    for path in proofs:
        old = kept if path == proofs[1] else None
        for anchor in (KNOWN, ROOT.public, TRAINER.public):
            report = verify_proof(path, anchor, old)
            assert report.ok, report.message
            assert report.root == ROOT.public.fingerprint
        report = verify_proof(path, THIEF.public, old)
        assert not report.ok
        assert (
            f"root {ROOT.public.fingerprint}, wanted {THIEF.public.fingerprint}" in report.message
        )


@pytest.mark.parametrize("forgery", FORGED)
def test_a_forged_certificate_is_refused_in_a_proof(
    forgery: str, proofs: tuple[Path, Path], tmp_path: Path
) -> None:
    run, reason = FORGED[forgery]
    genesis = run.groups[0][0]
    plain = make_run(run.key, ((msgspec.structs.replace(genesis, certificate=msgspec.UNSET),
                               *run.groups[0][1:]), *run.groups[1:]))  # fmt: skip
    plain.write(tmp_path / "plain")
    forged = replace(prove_event(tmp_path / "plain", 4), certificate=genesis.certificate)
    (tmp_path / "forged").write_bytes(forged.text())
    report = verify_proof(tmp_path / "forged", KNOWN)
    assert not report.ok
    # A proof names its signer by the certificate alone.
    spliced = reason.startswith("the certificate is of another key")
    assert ("its checkpoint names the key " if spliced else reason) in report.message


def test_every_flipped_bit_of_a_proof_with_a_certificate_is_found(
    proofs: tuple[Path, Path], tmp_path: Path
) -> None:
    good = encode_certificate(GOOD)
    made = prove_event(proofs[0].parent / "run", 4)
    for bit in range(len(good) * 8):
        spoilt = bytearray(good)
        spoilt[bit // 8] ^= 1 << bit % 8
        try:
            certificate = decode_certificate(bytes(spoilt))
        except CertificateError:
            continue
        (tmp_path / "spoilt").write_bytes(replace(made, certificate=certificate).text())
        assert not verify_proof(tmp_path / "spoilt", KNOWN).ok


@given(st.binary(max_size=300))
def test_noise_is_no_certificate(noise: bytes) -> None:
    with pytest.raises(CertificateError):
        decode_certificate(noise)


@pytest.mark.parametrize(
    "spoil",
    [lambda data: data + b"\0", lambda data: data[:-1], lambda data: b"\x85" + bytes(2000)],
)
def test_what_is_not_spelt_as_a_certificate_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    data = encode_certificate(GOOD)
    assert decode_certificate(data) == GOOD
    with pytest.raises(CertificateError):
        decode_certificate(spoil(data))
