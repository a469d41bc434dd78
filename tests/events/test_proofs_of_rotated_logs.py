"""What proofs show of a log whose key was exchanged, to whom, and by which keys they are forged."""

from __future__ import annotations

from pathlib import Path

import pytest

from esper_events.anchor import Anchor, Fingerprint
from esper_events.checkpoint import parse_checkpoint
from esper_events.codec import decode_event
from esper_events.events import PlateauDetected
from esper_events.keys import SigningKey
from esper_events.prove import prove_event, prove_growth
from esper_events.revocation import revoke
from esper_events.verify import verify_path
from esper_events.verify_proof import ProofReport, verify_proof
from support.authorities import begin, revoked, rotated
from support.event_runs import LOG, ended
from support.signed_logs import SignedLog

ROOT, FIRST, SECOND, THIRD, THIEF = (SigningKey.generate() for _ in range(5))
PLATEAU = PlateauDetected(time=1.0, step=9, figures={})
KNOWN = Fingerprint(ROOT.public.fingerprint)
ROTATION = 3


def log(root: SigningKey | None = ROOT) -> SignedLog:
    """Three events of the first key, one that rotates it, and two of the second."""
    told = begin(FIRST, SECOND, root).say(FIRST, PLATEAU)
    return told.say(SECOND, rotated(SECOND, THIRD, root), PLATEAU).say(SECOND, ended())


def laid(directory: Path, told: SignedLog, note: bytes) -> Path:
    (told.lay(directory) / "checkpoint").write_bytes(note)
    return directory


def held(proof: bytes, directory: Path, *against: object) -> ProofReport:
    path = directory / "proof"
    path.write_bytes(proof)
    return verify_proof(path, *against)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [2, ROTATION, ROTATION + 1, 6])
def test_the_root_s_fingerprint_is_enough_whichever_key_signed(size: int, tmp_path: Path) -> None:
    key = FIRST if size <= ROTATION else SECOND
    run = laid(tmp_path, log(), log().note(key, size))
    report = verify_path(run, KNOWN)
    assert (report.ok, report.checkpoint) == (True, size)
    for index in range(size):
        proof = prove_event(run, index)
        assert decode_event(proof.event)
        for anchor in (KNOWN, key.public):
            shown = held(proof.text(), tmp_path, anchor)
            assert (shown.ok, shown.root, shown.key) == (
                True, ROOT.public.fingerprint, key.public.fingerprint,
            )  # fmt: skip


def test_without_a_root_it_is_the_key_that_signed(tmp_path: Path) -> None:
    run = laid(tmp_path, log(None), log(None).note(SECOND))
    proof = prove_event(run, 1).text()
    assert held(proof, tmp_path, SECOND.public).ok
    report = held(proof, tmp_path, FIRST.public)
    assert not report.ok
    assert (
        f"made under the key {SECOND.public.fingerprint}, wanted {FIRST.public.fingerprint}"
        in report.message
    )


@pytest.mark.parametrize("root", [ROOT, None])
def test_growth_is_shown_across_the_exchange_of_keys(
    root: SigningKey | None, tmp_path: Path
) -> None:
    told = log(root)
    kept = parse_checkpoint(told.note(FIRST, 2))
    run = laid(tmp_path, told, told.note(SECOND))
    proof = prove_growth(run, kept).text()
    anchors: list[Anchor] = [SECOND.public, *([KNOWN] if root else [])]
    for anchor in anchors:
        report = held(proof, tmp_path, anchor, kept)
        assert report.ok, report.message
        assert "the kept checkpoint is of another key" in report.messages[-1]
    for nothing, reason in (
        (None, "the kept checkpoint is not; where the log's key was rotated since, name the one"),
        (FIRST.public, f"wanted {FIRST.public.fingerprint}"),
    ):
        report = held(proof, tmp_path, nothing, kept)
        assert not report.ok
        assert reason in report.message


def test_a_fork_is_no_growth_whoever_signs_it(tmp_path: Path) -> None:
    """The thief has the first key, or one that the root certified elsewhere."""
    other = begin(FIRST, SECOND, ROOT).say(FIRST, ended(), PLATEAU)
    kept = parse_checkpoint(log().note(FIRST, ROTATION))
    run = laid(tmp_path / "run", log(), log().note(SECOND))
    proof = prove_growth(run, kept)
    forged = parse_checkpoint(other.note(SECOND))
    lines = proof.text().split(b"\n\n", 1)[0] + b"\n\n" + forged.note()
    report = held(lines, tmp_path, KNOWN, kept)
    assert not report.ok
    assert "hashes, wanted" in report.message or "the path leads to the root" in report.message


@pytest.mark.parametrize(
    ("told", "size", "ok"),
    [((LOG, ROTATION), ROTATION, True), ((LOG, 2), ROTATION, False), (("", 0), 2, False),
     (("run-2", 0), 2, True)],
)  # fmt: skip
def test_a_proof_of_a_revoked_key_shows_nothing_behind_the_bound(
    told: tuple[str, int], size: int, ok: bool, tmp_path: Path
) -> None:
    run = laid(tmp_path, log(), log().note(FIRST, size))
    proof = prove_event(run, 1).text()
    assert held(proof, tmp_path, KNOWN).ok
    report = held(proof, tmp_path, KNOWN, None, [revoke(ROOT, FIRST.public, *told)])
    assert report.ok is ok
    assert ok or report.message == (
        f"its checkpoint counts {size} events and is signed by {FIRST.public.fingerprint}, which "
        f"the root revoked from event {told[1]} on"
    )


def test_without_its_root_s_name_a_revoked_key_is_refused_as_well(tmp_path: Path) -> None:
    """Its thief leaves the certificate out."""
    run = laid(tmp_path, begin(FIRST).say(FIRST, ended()), begin(FIRST).note(FIRST))
    told = [revoke(ROOT, FIRST.public)]
    assert held(prove_event(run, 1).text(), tmp_path, FIRST.public).ok
    assert not held(prove_event(run, 1).text(), tmp_path, FIRST.public, None, told).ok
    assert verify_path(run, FIRST.public).ok
    assert not verify_path(run, FIRST.public, revoked=told).ok


def test_nothing_is_proven_of_a_log_that_is_not_trusted(tmp_path: Path) -> None:
    told = log().copy()
    told.segments.pop()
    told.leaves.pop()
    told.say(ROOT, revoked(FIRST, ROOT, 2))
    run = laid(tmp_path, told, told.note(SECOND))
    with pytest.raises(Exception, match="event 2: not to be trusted from here on"):
        prove_event(run, 1)
