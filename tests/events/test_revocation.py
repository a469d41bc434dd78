"""Keys that the root takes back, and the bound behind which nothing of theirs is trusted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_events.certificate import Role
from esper_events.errors import ChainError, RevocationError
from esper_events.events import KeyCertified, PlateauDetected
from esper_events.keys import SigningKey
from esper_events.reader import LogReader
from esper_events.revocation import (
    check_revocation,
    decode_revocation,
    encode_revocation,
    revoke,
)
from esper_events.verify import verify_path
from support.authorities import begin, revoked, rotated, taken, trusted
from support.event_runs import LOG, blueprint, ended
from support.signed_logs import SignedLog

ROOT, FIRST, SECOND, THIRD, WORKER, THIEF = (SigningKey.generate() for _ in range(6))
PLATEAU = PlateauDetected(time=1.0, step=9, figures={})


def name(key: SigningKey) -> str:
    return key.public.fingerprint


def begun() -> SignedLog:
    """A log of four events under its first key, with a worker's."""
    certified = KeyCertified(time=1.0, certificate=trusted(WORKER, ROOT, Role.WORKER, LOG))
    return begin(FIRST, SECOND, ROOT).say(ROOT, certified).say(FIRST, PLATEAU)


def without(key: SigningKey = FIRST, since: int = 4) -> SignedLog:
    """The same with a fifth, by which the root takes ``key`` back."""
    return begun().say(ROOT, revoked(key, ROOT, since))


def test_a_log_goes_on_under_the_next_key_when_the_root_took_one_back(tmp_path: Path) -> None:
    log = without().say(SECOND, rotated(SECOND, THIRD, ROOT), PLATEAU).say(SECOND, ended())
    report = verify_path(log.lay(tmp_path), ROOT.public)
    assert report.ok, report.message
    assert (report.ended, report.key) == (True, name(SECOND))


def test_or_under_one_that_the_root_certifies(tmp_path: Path) -> None:
    log = without()
    event = taken(log, THIRD, certificate=trusted(THIRD, ROOT))
    assert verify_path(log.say(THIRD, event, epoch=1).lay(tmp_path), ROOT.public).ok


def test_the_trainer_may_put_a_revocation_of_the_root_on_record(tmp_path: Path) -> None:
    log = begun().say(FIRST, revoked(WORKER, ROOT, 4), PLATEAU).say(FIRST, ended())
    assert verify_path(log.lay(tmp_path), ROOT.public).ok


def test_what_the_key_signed_before_the_bound_stands_and_nothing_behind_it(tmp_path: Path) -> None:
    """The thief wrote event 3; the log can be read, but is not to be trusted from there on."""
    log = without(since=3).say(SECOND, rotated(SECOND, THIRD, ROOT)).say(SECOND, ended())
    reader, read = LogReader(log.lay(tmp_path), ROOT.public), []
    with pytest.raises(ChainError, match="event 3: ") as caught:
        read += reader.records()
    assert caught.value.event == 3
    assert reader.verifier.events == 7
    report = verify_path(tmp_path, ROOT.public)
    assert not report.ok
    assert report.message == (
        f"event 3: not to be trusted from here on: signed by {name(FIRST)}, which the root revoked "
        "from event 3 on; what stands before is whole"
    )


def test_a_bound_can_be_set_back_but_not_forward(tmp_path: Path) -> None:
    back = without().say(ROOT, revoked(FIRST, ROOT, 2))
    assert "event 2: not to be trusted from here on" in verify_path(back.lay(tmp_path)).message
    forward = without(since=3).say(ROOT, revoked(FIRST, ROOT, 4))
    assert (
        f"event 5: {name(FIRST)} is revoked from event 4 on at event 5, and was from event 3 on "
        "already"
    ) in verify_path(forward.lay(tmp_path)).message


FORGED: dict[str, tuple[SignedLog, str]] = {
    "by the trainer": (
        begun().say(FIRST, revoked(WORKER, FIRST, 4)),
        f"{name(WORKER)} is revoked by {name(FIRST)}, which is not the log's root",
    ),
    "by the trainer in the root's name": (
        begun().say(FIRST, revoked(WORKER, FIRST, 4, root=ROOT.public.raw)),
        f"the signature of the root {name(ROOT)} does not fit the revocation of {name(WORKER)}",
    ),
    "by another root": (
        begun().say(FIRST, revoked(WORKER, THIEF, 4)),
        f"{name(WORKER)} is revoked by {name(THIEF)}, which is not the log's root",
    ),
    "by a stolen worker's key": (
        begun().say(WORKER, revoked(FIRST, WORKER, 4)),
        f"{name(WORKER)} is a worker's key and may not write key.revoked",
    ),
    "put on record by a stolen worker's key": (
        begun().say(WORKER, revoked(FIRST, ROOT, 4)),
        f"{name(WORKER)} is a worker's key and may not write key.revoked",
    ),
    "of another key than the root signed for": (
        begun().say(ROOT, revoked(WORKER, ROOT, 4, key=FIRST.public.raw)),
        "does not fit the revocation of",
    ),
    "its bound moved": (
        begun().say(ROOT, revoked(FIRST, ROOT, 4, since=0)), "does not fit the revocation of",
    ),
    "spliced from another log": (
        begun().say(FIRST, revoked(WORKER, ROOT, 4, "run-2")),
        "the revocation is for log 'run-2', this is 'run-1'",
    ),
    "of every log": (
        begun().say(ROOT, revoked(FIRST, ROOT, 0, "")), "the revocation is for log '', this is",
    ),
    "from an event that is still to come": (
        begun().say(ROOT, revoked(FIRST, ROOT, 5)),
        f"{name(FIRST)} is revoked from event 5 on at event 4",
    ),
    "from before the first event": (
        begun().say(ROOT, revoked(FIRST, ROOT, -1)), "a revocation from event -1",
    ),
    "replayed": (
        without().say(ROOT, revoked(FIRST, ROOT, 4)), "and was from event 4 on already",
    ),
    "of the root": (
        begun().say(ROOT, revoked(ROOT, ROOT, 4)), "the root revokes itself: nobody is above it",
    ),
    "of no key": (
        begun().say(ROOT, revoked(FIRST, ROOT, 4, key=bytes(32))),
        "the revocation names no key: the public key has small order",
    ),
    "in a log without a root": (
        begin(FIRST).say(FIRST, revoked(WORKER, ROOT, 2)), "which is not the log's root",
    ),
    "the revoked key writes on": (
        without().say(FIRST, PLATEAU),
        f"event 5: {name(FIRST)} may write no more: the root revoked it at event 4",
    ),
    "it put its own revocation on record and writes on": (
        begun().say(FIRST, revoked(FIRST, ROOT, 4), PLATEAU),
        f"event 5: {name(FIRST)} may write no more: the root revoked it at event 4",
    ),
    "it takes the run over": (
        (log := without()).say(FIRST, taken(log, FIRST), epoch=1),
        f"event 5: {name(FIRST)} may write no more: the root revoked it at event 4",
    ),
    "it is certified as something else": (
        without().say(
            ROOT, KeyCertified(time=1.0, certificate=trusted(FIRST, ROOT, Role.WORKER, LOG))
        ),
        f"event 5: {name(FIRST)} may write no more: the root revoked it at event 4",
    ),
    "the next key was revoked before it came": (
        without(SECOND).say(SECOND, rotated(SECOND, THIRD, ROOT)),
        f"event 5: {name(SECOND)} may write no more: the root revoked it at event 4",
    ),
    "a revoked worker's key writes": (
        without(WORKER).say(WORKER, blueprint()),
        f"event 5: {name(WORKER)} may write no more: the root revoked it at event 4",
    ),
    "a key rotated out was revoked later, and its thief writes": (
        begun().say(SECOND, rotated(SECOND, THIRD, ROOT)).say(ROOT, revoked(FIRST, ROOT, 4))
        .say(FIRST, PLATEAU),
        f"event 6: {name(FIRST)} may write no more: the root revoked it at event 5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGED)
def test_what_the_root_did_not_take_back_so_is_refused(forgery: str, tmp_path: Path) -> None:
    log, reason = FORGED[forgery]
    report = verify_path(log.lay(tmp_path))
    assert not report.ok
    assert reason in report.message


def test_no_checkpoint_of_a_revoked_key_counts_what_is_behind_the_bound(tmp_path: Path) -> None:
    log = without().lay(tmp_path)
    for size, ok in ((3, True), (4, True), (5, False)):
        (tmp_path / "checkpoint").write_bytes(without().note(FIRST, size))
        report = verify_path(log)
        assert report.ok is ok
    assert report.message == (
        f"its signed checkpoint counts 5 events and is signed by {name(FIRST)}, which the root "
        "revoked from event 4 on"
    )


def test_a_verifier_is_told_of_what_the_log_cannot_tell(tmp_path: Path) -> None:
    """The thief's own run, and a run that has ended, hold no revocation."""
    begun().say(FIRST, ended()).lay(tmp_path)
    assert verify_path(tmp_path, ROOT.public).ok
    everywhere = revoke(ROOT, FIRST.public)
    for told, since in (
        ([everywhere], 0),
        ([everywhere, revoke(ROOT, FIRST.public, LOG, 3)], 3),
        ([revoke(ROOT, FIRST.public, LOG, 3), everywhere], 3),
        ([everywhere, revoke(ROOT, FIRST.public, LOG, 5)], None),
        ([revoke(ROOT, FIRST.public, "run-2", 0)], None),
        ([revoke(ROOT, SECOND.public)], None),
    ):
        report = verify_path(tmp_path, ROOT.public, revoked=told)
        assert report.ok is (since is None), report.message
        assert since is None or report.message.startswith(f"event {since}: not to be trusted")


@given(st.binary(max_size=300))
def test_noise_is_no_revocation(noise: bytes) -> None:
    with pytest.raises(RevocationError):
        decode_revocation(noise)


@pytest.mark.parametrize(
    "spoil",
    [lambda data: data + b"\0", lambda data: data[:-1], lambda data: b"\x85" + bytes(2000)],
)
def test_what_is_not_spelt_as_a_revocation_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    data = encode_revocation(revoke(ROOT, FIRST.public, LOG, 4))
    assert check_revocation(decode_revocation(data)) == (ROOT.public, FIRST.public)
    with pytest.raises(RevocationError):
        decode_revocation(spoil(data))


def test_every_flipped_bit_of_a_revocation_is_found() -> None:
    good = encode_revocation(revoke(ROOT, FIRST.public, LOG, 4))
    for bit in range(len(good) * 8):
        spoilt = bytearray(good)
        spoilt[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RevocationError):
            check_revocation(decode_revocation(bytes(spoilt)))
