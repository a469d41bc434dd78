"""A run that another writer goes on with: who may, where, and what a thief cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esper.log.errors import JournalError, LogError
from esper.log.memory import MemoryStore
from esper.log.writer import SegmentWriter
from esper_events.certificate import Role
from esper_events.codec import encode_event
from esper_events.events import KeyCertified, PlateauDetected, RunTakenOver
from esper_events.keys import SigningKey
from esper_events.verify import verify_path
from support.authorities import begin, taken, trusted
from support.event_runs import LOG, ended, started
from support.signed_logs import SignedLog

ROOT, TRAINER, SECOND, WORKER, THIEF = (SigningKey.generate() for _ in range(5))
PLATEAU = PlateauDetected(time=1.0, step=9, figures={})


def begun(key: SigningKey = TRAINER, log: str = LOG) -> SignedLog:
    """A log of two segments that the root vouches for."""
    return begin(key, root=ROOT, log=log).say(key, PLATEAU)


def take(log: SignedLog, key: SigningKey, epoch: int = 1, **changes: Any) -> SignedLog:
    return log.say(key, taken(log, key, epoch, **changes), epoch=epoch)


def test_a_run_is_taken_over_by_its_own_key_and_by_a_certified_one(tmp_path: Path) -> None:
    log = take(begun(), TRAINER)
    log = take(log, SECOND, 4, certificate=trusted(SECOND, ROOT)).say(SECOND, PLATEAU, epoch=4)
    log = take(log, TRAINER, 5, certificate=trusted(TRAINER, ROOT)).say(TRAINER, ended(), epoch=5)
    for anchor in (ROOT.public, TRAINER.public, None):
        report = verify_path(log.lay(tmp_path), anchor)
        assert report.ok, report.message
        assert (report.ended, report.key) == (True, TRAINER.public.fingerprint)


def test_a_log_without_a_root_goes_on_under_its_own_key_alone(tmp_path: Path) -> None:
    plain = SignedLog().say(TRAINER, started(TRAINER))
    assert verify_path(take(plain.copy(), TRAINER).lay(tmp_path)).ok
    report = verify_path(take(plain, SECOND, certificate=trusted(SECOND, ROOT)).lay(tmp_path))
    assert "a root certifies a key in a log that began without one" in report.message


def rooted(event: RunTakenOver, key: SigningKey, epoch: int = 1) -> SignedLog:
    return begun().say(key, event, epoch=epoch)


HANDED = take(begun(), SECOND, certificate=trusted(SECOND, ROOT))
OTHER = begun(log="run-2")
WORKED = begun().say(
    ROOT, KeyCertified(time=2.0, certificate=trusted(WORKER, ROOT, Role.WORKER, LOG))
)
FORGED: dict[str, tuple[SignedLog, str]] = {
    "by the trainer's stolen key, to exchange the next": (
        take(begun(), TRAINER, next_key=THIEF.public.digest),
        "run.taken_over by the trainer's own key commits to another next key",
    ),
    "without a certificate": (
        take(begun(), THIEF),
        f"{THIEF.public.fingerprint} takes the run over without a certificate",
    ),
    "certified by the thief": (
        take(begun(), THIEF, certificate=trusted(THIEF, THIEF)),
        f"is of the root {THIEF.public.fingerprint}, the log's is {ROOT.public.fingerprint}",
    ),
    "under the certificate of another": (
        take(begun(), THIEF, certificate=trusted(SECOND, ROOT)),
        f"the certificate is of another key than {THIEF.public.fingerprint}",
    ),
    "certified for another log": (
        take(begun(), SECOND, certificate=trusted(SECOND, ROOT, log="run-2")),
        "the certificate is for log 'run-2', this is 'run-1'",
    ),
    "certified as a worker": (
        take(begun(), WORKER, certificate=trusted(WORKER, ROOT, Role.WORKER)),
        "is certified as worker, not as trainer",
    ),
    "by a worker's stolen key": (
        take(WORKED, WORKER),
        f"{WORKER.public.fingerprint} is a worker's key and may not write run.taken_over",
    ),
    "in the name of a key that did not sign": (
        rooted(taken(begun(), SECOND, certificate=trusted(SECOND, ROOT)), THIEF),
        f"signed by key {THIEF.public.id.hex()}, wanted {SECOND.public.id.hex()}",
    ),
    "in the name of another key by the trainer's": (
        rooted(taken(begun(), SECOND, certificate=trusted(SECOND, ROOT)), TRAINER),
        f"run.taken_over names another key as its writer's than {TRAINER.public.fingerprint}",
    ),
    "replayed from another run": (
        SignedLog(LOG, [*begun().segments, take(OTHER, TRAINER).segments[-1]]),
        "belongs to log 'run-2', not to 'run-1'",
    ),
    "of another run, signed anew": (
        rooted(taken(OTHER, TRAINER), TRAINER),
        "as the one before it, which is",
    ),
    "at another fork point": (
        rooted(taken(begun().say(TRAINER, PLATEAU), TRAINER), TRAINER),
        "as the one before it, which is",
    ),
    "of another epoch than its segment": (
        rooted(taken(begun(), TRAINER, 3), TRAINER, 2),
        "run.taken_over is of lease epoch 3, its segment of 2",
    ),
    "in the same epoch": (
        take(begun(), TRAINER, 0),
        "taken over in lease epoch 0, after one of epoch 0: an epoch begins once",
    ),
    "twice in one epoch": (
        take(HANDED.copy(), TRAINER, 1, certificate=trusted(TRAINER, ROOT)),
        "taken over in lease epoch 1, after one of epoch 1: an epoch begins once",
    ),
    "an epoch raised without it": (
        begun().say(TRAINER, PLATEAU, epoch=1),
        "lease epoch 1 begins without run.taken_over",
    ),
    "an epoch raised before it": (
        begun().say(TRAINER, PLATEAU, taken(begun(), TRAINER), epoch=1),
        "lease epoch 1 begins without run.taken_over",
    ),
    "not as the first of its segment": (
        HANDED.copy().say(SECOND, PLATEAU, taken(HANDED, SECOND, 1), epoch=1),
        "run.taken_over within a segment",
    ),
    "the key before writes on": (
        HANDED.copy().say(TRAINER, PLATEAU, epoch=1),
        f"{TRAINER.public.fingerprint} may write no more: the run was taken over from it at event "
        "3",
    ),
    "the key before writes on in its epoch": (
        take(begun(), TRAINER).say(TRAINER, PLATEAU, epoch=0),
        "lease epoch 0 after epoch 1",
    ),
    "before there is a run": (
        SignedLog().say(TRAINER, taken(SignedLog(), TRAINER), epoch=1),
        "the log does not begin with run.started",
    ),
    "after its end": (
        take(begun().say(TRAINER, ended()), TRAINER),
        "an event after the end of the run",
    ),
}


@pytest.mark.parametrize("forgery", FORGED)
def test_a_forged_takeover_is_refused(forgery: str, tmp_path: Path) -> None:
    log, reason = FORGED[forgery]
    report = verify_path(log.lay(tmp_path))
    assert not report.ok
    assert reason in report.message


def store(log: SignedLog) -> MemoryStore:
    kept = MemoryStore()
    for place, segment in enumerate(log.segments):
        kept.append(place, segment)
    return kept


def test_a_writer_begins_an_epoch_with_the_takeover_alone() -> None:
    log = begun()
    event = taken(log, SECOND, certificate=trusted(SECOND, ROOT))
    with pytest.raises(JournalError, match="has no role in this log"):
        SegmentWriter(store(log), SECOND, LOG)
    with pytest.raises(LogError, match="lease epoch 1 begins without run.taken_over"):
        SegmentWriter(store(log), SECOND, LOG, epoch=1).write([encode_event(PLATEAU)])
    kept = store(log)
    SegmentWriter(kept, SECOND, LOG, epoch=1).write([encode_event(event), encode_event(PLATEAU)])
    writer = SegmentWriter(kept, SECOND, LOG)
    writer.write([encode_event(PLATEAU)])
    assert SegmentWriter(kept, SECOND, LOG, epoch=1).events == 6
    with pytest.raises(LogError, match="in lease epoch 1 already"):
        SegmentWriter(kept, SECOND, LOG, epoch=0)
    with pytest.raises(JournalError, match="the run was taken over from it at event 3"):
        SegmentWriter(kept, TRAINER, LOG)
