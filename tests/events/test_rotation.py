"""The trainer's key exchanged for the one that the log committed to, and what those do who stole
a key."""

from __future__ import annotations

from pathlib import Path

import pytest

from esper.log.errors import JournalError
from esper.log.memory import MemoryStore
from esper.log.writer import SegmentWriter
from esper_events.anchor import Fingerprint
from esper_events.certificate import Role
from esper_events.codec import encode_event
from esper_events.events import KeyCertified, PlateauDetected
from esper_events.export import export_run
from esper_events.keys import SigningKey
from esper_events.verify import verify_path
from support.authorities import begin, rotated, taken, trusted
from support.event_runs import LOG, ended
from support.signed_logs import SignedLog

ROOT, FIRST, SECOND, THIRD, WORKER, THIEF = (SigningKey.generate() for _ in range(6))
PLATEAU = PlateauDetected(time=1.0, step=9, figures={})


def name(key: SigningKey) -> str:
    return key.public.fingerprint


def plain() -> SignedLog:
    return begin(FIRST, SECOND)


def rooted() -> SignedLog:
    return begin(FIRST, SECOND, ROOT)


def turned() -> SignedLog:
    """A log without a root under its second key, with three events."""
    return plain().say(SECOND, rotated(SECOND, THIRD))


@pytest.mark.parametrize("root", [ROOT, None])
def test_a_key_is_rotated_as_often_as_there_is_a_next(
    root: SigningKey | None, tmp_path: Path
) -> None:
    log = begin(FIRST, SECOND, root)
    log.say(SECOND, rotated(SECOND, THIRD, root), PLATEAU)
    log.say(THIRD, rotated(THIRD, FIRST, root)).say(THIRD, ended())
    log.lay(tmp_path)
    anchors = [None, FIRST.public, Fingerprint(name(FIRST)), *([root.public] if root else [])]
    for anchor in anchors:
        report = verify_path(tmp_path, anchor)
        assert report.ok, report.message
        assert (report.ended, report.key) == (True, name(THIRD))
        assert f"signed by {name(THIRD)}, the last of its 3 keys" in report.message


FORGED: dict[str, tuple[SignedLog, str]] = {
    "to a key that was not committed": (
        plain().say(THIEF, rotated(THIEF, THIRD)),
        f"event 2: {name(THIEF)} is rotated to, and the next key that the log has committed to is "
        f"{name(SECOND)}",
    ),
    "to a thief's key that the root certified elsewhere": (
        rooted().say(THIEF, rotated(THIEF, THIRD, ROOT)),
        f"the next key that the log has committed to is {name(SECOND)}",
    ),
    "the stolen key names the next, which it does not have": (
        plain().say(FIRST, rotated(SECOND, THIEF)),
        f"key.rotated names another key than {name(FIRST)}, which signed it",
    ),
    "a thief names the next, which he does not have": (
        plain().say(THIEF, rotated(SECOND, THIRD)),
        f"signed by key {THIEF.public.id.hex()}, wanted {SECOND.public.id.hex()}",
    ),
    "the stolen key rotates to itself": (
        plain().say(FIRST, rotated(FIRST, THIEF)),
        f"{name(FIRST)} is rotated to, and is the trainer's key already",
    ),
    "a stolen worker's key rotates": (
        begin(FIRST, WORKER, ROOT)
        .say(ROOT, KeyCertified(time=1.0, certificate=trusted(WORKER, ROOT, Role.WORKER, LOG)))
        .say(WORKER, rotated(WORKER, THIRD, ROOT)),
        f"{name(WORKER)} is a worker's key and may not write key.rotated",
    ),
    "in a log that committed to none": (
        begin(FIRST).say(SECOND, rotated(SECOND, THIRD)),
        f"{name(SECOND)} is rotated to, and the log has committed to no next key",
    ),
    "in a log of a root that committed to none": (
        begin(FIRST, root=ROOT).say(SECOND, rotated(SECOND, THIRD, ROOT)),
        f"{name(SECOND)} is rotated to, and the log has committed to no next key",
    ),
    "the old key writes on": (
        turned().say(FIRST, PLATEAU),
        f"event 3: {name(FIRST)} may write no more: its key was rotated at event 2",
    ),
    "the old key ends the run": (
        turned().say(FIRST, ended()),
        f"event 3: {name(FIRST)} may write no more: its key was rotated at event 2",
    ),
    "a suffix signed anew with the old key": (
        SignedLog(LOG, turned().segments, turned().leaves[:3]).say(FIRST, PLATEAU),
        f"event 3: {name(FIRST)} may write no more",
    ),
    "the old key takes the run over": (
        (log := turned()).say(FIRST, taken(log, FIRST), epoch=1),
        f"event 3: {name(FIRST)} may write no more: its key was rotated at event 2",
    ),
    "the old key, certified, takes the run over": (
        (log := rooted().say(SECOND, rotated(SECOND, THIRD, ROOT))).say(
            FIRST, taken(log, FIRST, certificate=trusted(FIRST, ROOT)), epoch=1
        ),
        f"event 3: {name(FIRST)} may write no more: its key was rotated at event 2",
    ),
    "the old key comes back as a worker's": (
        rooted()
        .say(SECOND, rotated(SECOND, THIRD, ROOT))
        .say(ROOT, KeyCertified(time=1.0, certificate=trusted(FIRST, ROOT, Role.WORKER, LOG))),
        f"event 3: {name(FIRST)} may write no more: its key was rotated at event 2",
    ),
    "the old key is committed to and rotated to": (
        plain()
        .say(SECOND, rotated(SECOND, FIRST))
        .say(FIRST, rotated(FIRST, THIRD)),
        f"event 3: {name(FIRST)} may write no more: its key was rotated at event 2",
    ),
    "replayed": (
        SignedLog(LOG, [*turned().segments, turned().segments[-1]]),
        "begins with event 2, wanted 3: a segment is missing, doubled or out of order",
    ),
    "replayed and signed anew": (
        turned().say(SECOND, rotated(SECOND, THIRD)),
        f"event 3: {name(SECOND)} is rotated to, and is the trainer's key already",
    ),
    "replayed from another run": (
        SignedLog(LOG, [*plain().segments,
                        begin(FIRST, SECOND, log="run-2").say(SECOND, rotated(SECOND, THIRD))
                        .segments[-1]]),
        "belongs to log 'run-2', not to 'run-1'",
    ),
    "without a certificate under a root": (
        rooted().say(SECOND, rotated(SECOND, THIRD)),
        f"{name(SECOND)} comes without a certificate into a log of the root {name(ROOT)}",
    ),
    "under the certificate of another root": (
        rooted().say(SECOND, rotated(SECOND, THIRD, THIEF)),
        f"the certificate is of the root {name(THIEF)}, the log's is {name(ROOT)}",
    ),
    "under the certificate of another key": (
        rooted().say(SECOND, rotated(SECOND, THIRD, certificate=trusted(FIRST, ROOT))),
        f"the certificate is of another key than {name(SECOND)}",
    ),
    "under a certificate where there is no root": (
        plain().say(SECOND, rotated(SECOND, THIRD, ROOT)),
        "a root certifies a key in a log that began without one",
    ),
    "not as the first of its segment": (
        plain().say(SECOND, PLATEAU, rotated(SECOND, THIRD)),
        f"signed by key {SECOND.public.id.hex()}, wanted {FIRST.public.id.hex()}",
    ),
    "to a key of small order": (
        plain().say(SECOND, rotated(SECOND, THIRD, trainer_key=bytes(32))),
        "event 2: the public key has small order",
    ),
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGED)
def test_a_forged_rotation_is_refused(forgery: str, tmp_path: Path) -> None:
    log, reason = FORGED[forgery]
    report = verify_path(log.lay(tmp_path))
    assert not report.ok
    assert reason in report.message


def test_a_run_without_a_root_is_taken_over_by_the_key_it_committed_to(tmp_path: Path) -> None:
    log = plain()
    log.say(SECOND, taken(log, SECOND, next_key=THIRD.public.digest), epoch=1)
    log.say(THIRD, rotated(THIRD, FIRST), epoch=1)
    assert verify_path(log.lay(tmp_path)).ok


def test_the_writer_is_held_to_the_same(tmp_path: Path) -> None:
    store = MemoryStore()
    for place, segment in enumerate(plain().segments):
        store.append(place, segment)
    writer = SegmentWriter(store, SECOND, LOG)
    writer.write([encode_event(rotated(SECOND, THIRD)), encode_event(PLATEAU)])
    assert SegmentWriter(store, SECOND, LOG).events == 4
    for stranger, reason in ((FIRST, "its key was rotated"), (THIEF, "has no role in this log")):
        with pytest.raises(JournalError, match=reason):
            SegmentWriter(store, stranger, LOG)


def test_an_export_ends_in_the_word_of_the_last_key(tmp_path: Path) -> None:
    log = turned()
    (log.lay(tmp_path) / "checkpoint").write_bytes(log.note(SECOND))
    export_run(tmp_path, tmp_path / "file")
    for anchor in (FIRST.public, None):
        assert verify_path(tmp_path / "file", anchor).ok
    footer = log.note(SECOND)
    forged = (tmp_path / "file").read_bytes().replace(footer, log.note(FIRST))
    (tmp_path / "forged").write_bytes(forged)
    report = verify_path(tmp_path / "forged")
    assert f"{name(FIRST)} signed its signed checkpoint of 3 events" in report.message


CHECKPOINTS: dict[str, tuple[SigningKey, int, str]] = {
    "of the key rotated out": (
        FIRST, 3,
        f"{name(FIRST)} signed its signed checkpoint of 3 events, when {name(SECOND)} was the "
        "trainer's key",
    ),
    "of the key not yet in force": (
        SECOND, 2,
        f"{name(SECOND)} signed its signed checkpoint of 2 events, when {name(FIRST)} was the "
        "trainer's key",
    ),
    "of a stranger": (THIEF, 3, "the signature does not fit its text and the log's key"),
    "of the next key": (THIRD, 3, "the signature does not fit its text and the log's key"),
}  # fmt: skip


@pytest.mark.parametrize("forgery", CHECKPOINTS)
def test_a_checkpoint_is_of_the_key_in_force_at_its_size(forgery: str, tmp_path: Path) -> None:
    key, size, reason = CHECKPOINTS[forgery]
    log = turned()
    (log.lay(tmp_path) / "checkpoint").write_bytes(log.note(key, size))
    report = verify_path(tmp_path)
    assert not report.ok
    assert reason in report.message
    for good, at in ((FIRST, 1), (FIRST, 2), (SECOND, 3)):
        (tmp_path / "checkpoint").write_bytes(log.note(good, at))
        assert verify_path(tmp_path).checkpoint == at
