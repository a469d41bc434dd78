"""Who may write what: keys of several roles in one log, and what those do who steal one."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from esper_events.authority import MAY_WRITE
from esper_events.certificate import Role, certify
from esper_events.codec import encode_event
from esper_events.events import Event, KeyCertified, PlateauDetected
from esper_events.framing import JOURNAL, frame
from esper_events.keys import SigningKey
from esper_events.reader import LogReader
from esper_events.schemas import kinds
from esper_events.segment import GENESIS, seal, segment_hash
from esper_events.stages import Stage
from esper_events.verify import verify_path
from support.event_runs import (
    LOG,
    applied,
    blueprint,
    decided,
    ended,
    lattice,
    started,
)

ROOT, TRAINER, WORKER, CONTROLLER, THIEF = (SigningKey.generate() for _ in range(5))
PLATEAU = PlateauDetected(time=1.0, step=9, figures={})
BEGINNING = (
    msgspec.structs.replace(
        started(TRAINER), certificate=certify(ROOT, TRAINER.public, Role.TRAINER)
    ),
    lattice("fc"),
    blueprint(),
)

Signed = tuple[SigningKey, Sequence[Event]]


def certified(
    subject: SigningKey, as_role: Role, for_log: str = LOG, by: SigningKey = ROOT, **changes: object
) -> KeyCertified:
    certificate = msgspec.structs.replace(certify(by, subject.public, as_role, for_log), **changes)
    return KeyCertified(time=2.0, certificate=certificate)


CERTIFIED = certified(WORKER, Role.WORKER)
GOOD: list[Signed] = [
    (TRAINER, BEGINNING),
    (ROOT, [CERTIFIED, certified(CONTROLLER, Role.CONTROLLER)]),
    (WORKER, [blueprint()]),
    (CONTROLLER, [PLATEAU]),
    (TRAINER, [PLATEAU, decided(1, Stage.DORMANT, Stage.GERMINATED), applied(1)]),
    (TRAINER, [ended()]),
]


def lay(directory: Path, signed: Sequence[Signed]) -> None:
    journal, index, previous = b"", 0, GENESIS
    for key, events in signed:
        data = [encode_event(event) for event in events]
        segment = seal(data, log=LOG, first_index=index, previous=previous, key=key)
        journal, index, previous = (
            journal + frame(segment),
            index + len(data),
            segment_hash(segment),
        )
    (directory / JOURNAL).parent.mkdir()
    (directory / JOURNAL).write_bytes(journal)


def test_each_writes_what_its_role_may(tmp_path: Path) -> None:
    lay(tmp_path, GOOD)
    for anchor in (ROOT.public, TRAINER.public, None):
        report = verify_path(tmp_path, anchor)
        assert report.ok, report.message
        assert report.ended
        assert report.key == TRAINER.public.fingerprint


def test_a_reader_is_told_who_signed(tmp_path: Path) -> None:
    lay(tmp_path, GOOD)
    reader = LogReader(tmp_path, ROOT.public)
    told = [(r.index, reader.verifier.signer) for r in reader.records()]
    signers = [key.public for key, events in GOOD for _ in events]
    assert told == list(enumerate(signers))


def test_the_trainer_may_put_a_certificate_on_record_too(tmp_path: Path) -> None:
    lay(tmp_path, [(TRAINER, [*BEGINNING, CERTIFIED]), (WORKER, [blueprint()])])
    assert verify_path(tmp_path, ROOT.public).ok


def test_the_table_knows_every_role_and_the_trainer_every_kind() -> None:
    assert set(MAY_WRITE) == set(Role)
    assert MAY_WRITE[Role.TRAINER] == frozenset(typing.get_args(Event))
    transitions = {kind for name, kind in kinds().items() if name.startswith("transition.")}
    for role in (Role.ROOT, Role.CONTROLLER, Role.WORKER):
        assert not MAY_WRITE[role] & transitions


def name(key: SigningKey) -> str:
    return key.public.fingerprint


FORGED: dict[str, tuple[list[Signed], str]] = {
    "a stolen worker's key writes a trainer's transition": (
        [*GOOD[:2], (WORKER, [decided(1, Stage.DORMANT, Stage.GERMINATED)])],
        f"event 5: {name(WORKER)} is a worker's key and may not write transition.decided",
    ),
    "behind something that it may write": (
        [*GOOD[:2], (WORKER, [blueprint(), decided(1, Stage.DORMANT, Stage.GERMINATED)])],
        f"event 6: {name(WORKER)} is a worker's key and may not write transition.decided",
    ),
    "it writes what a controller may": (
        [*GOOD[:2], (WORKER, [PLATEAU])],
        "is a worker's key and may not write plateau.detected",
    ),
    "it certifies another key": (
        [*GOOD[:2], (WORKER, [certified(THIEF, Role.WORKER)])],
        "is a worker's key and may not write key.certified",
    ),
    "it ends the run": (
        [*GOOD[:2], (WORKER, [ended()])],
        "is a worker's key and may not write run.ended",
    ),
    "a stolen controller's key writes a transition": (
        [*GOOD[:2], (CONTROLLER, [decided(1, Stage.DORMANT, Stage.GERMINATED)])],
        "is a controller's key and may not write transition.decided",
    ),
    "the root writes what is the trainer's": (
        [*GOOD[:2], (ROOT, [PLATEAU])],
        "is a root's key and may not write plateau.detected",
    ),
    "a worker that nobody certified": (
        [GOOD[0], (WORKER, [blueprint()])],
        f"signed by key {WORKER.public.id.hex()}, wanted {TRAINER.public.id.hex()}",
    ),
    "a worker before its certificate": (
        [GOOD[0], (WORKER, [blueprint()]), GOOD[1]],
        f"signed by key {WORKER.public.id.hex()}, wanted {TRAINER.public.id.hex()}",
    ),
    "a certificate of another root": (
        [GOOD[0], (TRAINER, [certified(WORKER, Role.WORKER, by=THIEF)])],
        f"event 3: the certificate is of the root {name(THIEF)}, the log's is {name(ROOT)}",
    ),
    "of another root that names the log's": (
        [GOOD[0], (TRAINER, [KeyCertified(time=2.0, certificate=msgspec.structs.replace(
            certify(THIEF, WORKER.public, Role.WORKER), root=ROOT.public.raw))])],
        f"the signature of the root {name(ROOT)} does not fit the certificate of {name(WORKER)}",
    ),
    "spliced from another log": (
        [GOOD[0], (TRAINER, [certified(WORKER, Role.WORKER, "run-2")])],
        "the certificate is for log 'run-2', this is 'run-1'",
    ),
    "spliced from another log and made out to this": (
        [GOOD[0], (TRAINER, [certified(WORKER, Role.WORKER, "run-2", log=LOG)])],
        "does not fit the certificate of",
    ),
    "a role escalated": (
        [GOOD[0], (TRAINER, [certified(WORKER, Role.WORKER, role=Role.CONTROLLER)])],
        "does not fit the certificate of",
    ),
    "a second trainer": (
        [GOOD[0], (TRAINER, [certified(THIEF, Role.TRAINER)])],
        "a log has one trainer, from its first event",
    ),
    "a second root": (
        [GOOD[0], (TRAINER, [certified(THIEF, Role.ROOT)])],
        "a log has one root, from its first event",
    ),
    "a second role for the trainer": (
        [GOOD[0], (ROOT, [certified(TRAINER, Role.WORKER)])],
        f"{name(TRAINER)} has a role in this log already",
    ),
    "a second role for a worker": (
        [*GOOD[:2], (ROOT, [certified(WORKER, Role.CONTROLLER)])],
        f"{name(WORKER)} has a role in this log already",
    ),
    "a log without a root": (
        [(TRAINER, [started(TRAINER), CERTIFIED])],
        "event 1: a key is certified in a log that began without a root",
    ),
    "a key of small order": (
        [GOOD[0], (TRAINER, [certified(WORKER, Role.WORKER, key=bytes(32))])],
        "the certificate is of no key: the public key has small order",
    ),
    "the genesis of a worker who has a worker's certificate": (
        [(WORKER, [msgspec.structs.replace(started(WORKER), certificate=CERTIFIED.certificate)])],
        f"event 0: {name(WORKER)} is certified as worker, not as trainer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGED)
def test_what_a_role_may_not_is_refused(forgery: str, tmp_path: Path) -> None:
    signed, reason = FORGED[forgery]
    lay(tmp_path, signed)
    report = verify_path(tmp_path)
    assert not report.ok
    assert reason in report.message
