"""A proof stands for itself: one spelling, checked with no more than a fingerprint, and no other
file passes for it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_events.anchor import Fingerprint
from esper_events.checkpoint import parse_checkpoint
from esper_events.codec import MAX_EVENT_BYTES, encode_event
from esper_events.errors import ChainError, FingerprintError, ProofError, TrustError
from esper_events.events import PlateauDetected
from esper_events.export import export_run
from esper_events.keys import PublicKey, SigningKey
from esper_events.proof import (
    MAX_PROOF_BYTES,
    ConsistencyProof,
    InclusionProof,
    load_proof,
    parse_proof,
)
from esper_events.prove import prove_event, prove_growth
from esper_events.verify_proof import verify_proof
from support.event_runs import Run, make_run
from support.merkle import defined_path, defined_proof

INDEX = 4


@pytest.fixture
def path(run: Run, tmp_path: Path) -> Path:
    run.write(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def proof(path: Path) -> InclusionProof:
    return prove_event(path, INDEX)


@pytest.fixture
def growth(running: Run, path: Path) -> ConsistencyProof:
    return prove_growth(path, parse_checkpoint(running.note))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def leaves(run: Run) -> list[bytes]:
    return [encode_event(event) for group in run.groups for event in group]


def test_an_inclusion_proof_is_c2sps_tlog_proof(run: Run, proof: InclusionProof) -> None:
    """Read here as c2sp.org/tlog-proof says, independently of ours."""
    head, note = proof.text().decode().split("\n\n", 1)
    first, extra, index, *hashes = head.split("\n")
    assert (first, index) == ("c2sp.org/tlog-proof@v1", f"index {INDEX}")
    assert [base64.b64decode(line) for line in hashes] == defined_path(INDEX, leaves(run))
    assert note.encode() == run.note
    word, data = extra.split(" ")
    assert word == "extra"
    assert base64.b64decode(data) == b"\x01" + run.key.public.raw + leaves(run)[INDEX]


def test_a_consistency_proof_ends_in_what_a_c2sp_witness_takes(
    run: Run, running: Run, growth: ConsistencyProof
) -> None:
    first, extra, request = growth.text().decode().split("\n", 2)
    assert first == "esper/consistency-proof@v1"
    assert extra == f"extra {base64.b64encode(bytes([1]) + run.key.public.raw).decode()}"
    old = len(leaves(running))
    hashes = [base64.b64encode(node).decode() for node in defined_proof(old, leaves(run))]
    assert request == "\n".join([f"old {old}", *hashes, "", run.note.decode()])


@pytest.mark.parametrize("index", range(7))
def test_every_event_is_proven_from_its_file_alone(run: Run, path: Path, index: int) -> None:
    export_run(path, path.parent / "run.esper")
    made = prove_event(path, index)
    assert made == prove_event(path.parent / "run.esper", index)
    file = write(path.parent / "proof", made.text())
    assert load_proof(file) == made
    for fingerprint in (run.key.public.fingerprint, run.key.public.openssh_fingerprint):
        report = verify_proof(file, Fingerprint(fingerprint))
        assert report.ok, report.message
        assert (report.log, report.index, report.events) == ("run-1", index, 7)
        assert report.key == run.key.public.fingerprint
    event = next(e for n, e in enumerate(e for group in run.groups for e in group) if n == index)
    assert report.event is not None
    assert report.event["kind"] == event.__struct_config__.tag
    assert report.words.startswith(f"{index}  ")


@pytest.mark.parametrize("old", range(1, 8))
def test_growth_from_every_checkpoint_is_proven(
    run: Run, make: Callable[..., Run], path: Path, old: int
) -> None:
    events = [event for group in run.groups for event in group]
    kept = parse_checkpoint(make(events[:old]).note)
    file = write(path.parent / "proof", prove_growth(path, kept).text())
    report = verify_proof(file, kept=kept)
    assert report.ok, report.message
    assert (report.kept, report.events, report.event) == (old, 7, None)
    assert f"went on from the kept checkpoint's {old} events to 7" in report.message


def test_what_is_not_excluded_is_said(
    run: Run, proof: InclusionProof, growth: ConsistencyProof, running: Run, tmp_path: Path
) -> None:
    file, pin = write(tmp_path / "proof", proof.text()), run.key.public
    others = "nothing is shown of the log's other events, nor that it keeps the rules"
    another = "another history signed by the owner of the key is not excluded"
    assert [m[: len(others)] for m in verify_proof(file, pin).messages[1:2]] == [others]
    assert [m[: len(another)] for m in verify_proof(file, pin).messages[2:]] == [another]
    report = verify_proof(file, kept=parse_checkpoint(run.note))
    assert len(report.messages) == 2
    assert report.messages[1].startswith(others)
    grown = verify_proof(
        write(tmp_path / "growth", growth.text()), kept=parse_checkpoint(running.note)
    )
    assert "nothing is shown of what the events say" in grown.messages[1]
    assert "rewritten after event 6 by the owner of the key is not excluded" in grown.messages[2]


def test_a_proof_is_held_to_something_or_not_checked_at_all(
    run: Run, proof: InclusionProof, growth: ConsistencyProof, tmp_path: Path
) -> None:
    with pytest.raises(TrustError, match="anybody can make a proof"):
        verify_proof(write(tmp_path / "proof", proof.text()))
    for trusted in (None, run.key.public):
        with pytest.raises(TrustError, match="from a checkpoint that you kept"):
            verify_proof(write(tmp_path / "growth", growth.text()), trusted)


def test_no_bit_of_a_proof_can_be_changed_and_none_can_be_cut_off(
    run: Run, running: Run, proof: InclusionProof, growth: ConsistencyProof, tmp_path: Path
) -> None:
    file, kept = tmp_path / "proof", parse_checkpoint(running.note)
    for good, anchor, known in (
        (proof.text(), run.key.public, None),
        (growth.text(), run.key.public, kept),
    ):
        spoilt = [good[:length] for length in range(len(good))]
        for bit in range(len(good) * 8):
            flipped = bytearray(good)
            flipped[bit // 8] ^= 1 << bit % 8
            spoilt.append(bytes(flipped))
        for data in spoilt:
            report = verify_proof(write(file, data), anchor, known)
            assert not report.ok
            assert len(report.messages) == 1
        assert verify_proof(write(file, good), anchor, known).ok


GOOD_LINE = "YWJj" * 10 + "YWI="
"""Base64 of 32 bytes."""


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("\n", "\r\n", r"got '\r' in line 1, wanted what can be printed"),
        ("esper/run-1\n7", "esper/run\x1b-1\n7", r"got '\x1b' in line 8"),
        ("@v1", "@v2", "got 'c2sp.org/tlog-proof@v2' in line 1, wanted c2sp.org/tlog-proof@v1 or"),
        ("extra ", "extra  ", "wanted base64"),
        ("extra", "Extra", "in line 2, wanted 'extra' and a space"),
        ("index 4", "old 4", "got 'old 4' in line 3, wanted 'index' and a space"),
        ("index 4\n", "", "in line 3, wanted 'index' and a space"),
        ("index 4", "index 04", "got index '04', wanted a decimal number"),
        ("index 4", "index +4", "got index '+4', wanted a decimal number"),
        ("index 4", "index \u0664", "got index '\u0664', wanted a decimal number"),
        ("index 4", "index -4", "got index '-4', wanted a decimal number"),
        ("index 4", f"index {2**63}", f"got index '{2**63}', wanted a decimal number, at most"),
        ("index 4", "index " + "9" * 5000, "wanted a decimal number, at most 9223372036854775807"),
        ("index 4", "index 5", "the path leads from this event at place 5 of 7"),
        ("index 4", "index 6", "got a path of 3 hashes, wanted 2 for leaf 6 of 7"),
        ("index 4", "index 7", "got leaf 7, wanted one of the tree's 7, from 0"),
        ("index 4", f"index {2**63 - 1}", f"got leaf {2**63 - 1}, wanted one of the tree's 7"),
        ("index 4\n", f"index 4\n{GOOD_LINE}\n", "got a path of 4 hashes, wanted 3"),
        ("index 4\n", "index 4\n" + f"{GOOD_LINE}\n" * 62, "got a path of 65 hashes, at most 64"),
        ("index 4\n", "index 4\nYWJj\n", "got hash 1 of 3 bytes, wanted 32"),
        ("index 4\n", f"index 4\n{GOOD_LINE[:-2]}J=\n", "base64 in its one canonical spelling"),
        ("index 4\n", f"index 4\n{'_' * 44}\n", "got hash 1 '____"),
        ("index 4\n", "index 4\n" + "YWJj" * 250_000 + "\n", "of 750000 bytes, wanted 32"),
        ("\n\n", "\n", "cut off: the empty line before the checkpoint is missing"),
        ("\n7\n", "\n0\n", "got size 0, wanted a log that has begun"),
        ("\n7\n", f"\n{2**63}\n", f"got size '{2**63}', wanted a decimal number, at most"),
        ("\n7\n", "\n6\n", "the signature does not fit its checkpoint's text"),
        ("esper/run-1", "esper/run-2", "its checkpoint names the key"),
        ("esper/run-1\n7", "other/run-1\n7", "got the origin 'other/run-1', wanted esper/ and"),
        ("— esper/run-1", "— esper/run-2", "wanted a signature line that begins '— esper/run-1 '"),
    ],
)
def test_other_spellings_are_refused(
    run: Run, proof: InclusionProof, tmp_path: Path, old: str, new: str, reason: str
) -> None:
    text = proof.text().decode()
    assert old in text
    forged = write(tmp_path / "proof", text.replace(old, new).encode())
    assert reason in verify_proof(forged, run.key.public).message


def test_what_follows_the_checkpoint_is_refused(
    run: Run, proof: InclusionProof, tmp_path: Path
) -> None:
    good = proof.text()
    for tail, reason in (
        (b"\n", "got 6 lines, wanted origin"),
        (b"x", "cut off: its last line does not end in a newline"),
        (b"\0\n", r"got '\x00' in line 13"),
        (b"\xff\n", f"byte {len(good)} is not of UTF-8 text"),
        (good.split(b"\n")[-2] + b"\n", "got 6 lines, wanted origin"),
        (good, "got 17 lines, wanted origin"),
        (b" " * MAX_PROOF_BYTES, f"a proof over {MAX_PROOF_BYTES} bytes"),
    ):
        assert reason in verify_proof(write(tmp_path / "p", good + tail), run.key.public).message


def with_extra(proof: InclusionProof | ConsistencyProof, extra: bytes) -> bytes:
    first, _, rest = proof.text().split(b"\n", 2)
    return b"\n".join([first, b"extra " + base64.b64encode(extra), rest])


def test_extra_data_that_is_no_key_and_event_is_refused(
    run: Run, proof: InclusionProof, growth: ConsistencyProof, tmp_path: Path
) -> None:
    key = b"\x01" + run.key.public.raw
    wanted = "wanted 1 and the 32 bytes of a key, or 2 and a certificate behind its length"
    for data, reason in (
        (with_extra(proof, b""), f"got extra of 0 bytes that begins with 0, {wanted}"),
        (with_extra(proof, key), "0 bytes behind the signer, wanted a signer and an event"),
        (with_extra(growth, key + b"x"), "1 bytes behind the signer, wanted a signer alone"),
        (with_extra(growth, key[:-1]), f"got extra of 32 bytes that begins with 1, {wanted}"),
        (with_extra(proof, b"\x03" + key[1:]), f"of 33 bytes that begins with 3, {wanted}"),
        (with_extra(proof, b"\x02\xff\xff" + key), f"of 36 bytes that begins with 2, {wanted}"),
        (with_extra(proof, b"\x02\0\2" + key), "not a certificate: "),
        (with_extra(proof, b"\x01" + bytes(32) + b"x"), "the public key has small order"),
        (with_extra(proof, key + b"x"), "the path leads from this event at place 4"),
    ):
        assert reason in verify_proof(write(tmp_path / "p", data), run.key.public).message


def test_the_largest_event_fits_into_a_proof(key: SigningKey, run: Run, tmp_path: Path) -> None:
    def plateau(extra: int) -> PlateauDetected:
        return PlateauDetected(time=0.0, step=1, figures={"x" * 1_000_000 + "y" * extra: 1.0})

    spare = MAX_EVENT_BYTES - len(encode_event(plateau(0)))
    make_run(key, (run.groups[0], (plateau(spare),))).write(tmp_path / "run")
    made = prove_event(tmp_path / "run", 3)
    assert len(made.event) == MAX_EVENT_BYTES
    assert verify_proof(write(tmp_path / "proof", made.text()), key.public).ok


@given(st.binary(max_size=200), st.sampled_from([b"", b"c2sp.org/tlog-proof@v1\nextra "]))
def test_noise_raises_only_the_declared_error(noise: bytes, start: bytes) -> None:
    with pytest.raises(ProofError):
        parse_proof(start + noise)


def test_a_missing_file_and_a_directory_are_reports(run: Run, tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path, Path("nul\0byte")):
        report = verify_proof(path, run.key.public)
        assert not report.ok
        assert report.message.startswith("cannot be read: ")


def test_what_the_checkpoint_does_not_count_cannot_be_proven(
    running: Run, make: Callable[..., Run], tmp_path: Path
) -> None:
    journal = running.write(tmp_path)
    (tmp_path / "checkpoint").write_bytes(make(running.groups[0]).note)
    assert prove_event(tmp_path, 2).signed.checkpoint.size == 3
    with pytest.raises(ProofError, match="got event 3, the signed checkpoint counts 3, from 0"):
        prove_event(tmp_path, 3)
    with pytest.raises(ProofError, match="checkpoint counts 6 events, the run's own only 3"):
        prove_growth(tmp_path, parse_checkpoint(running.note))
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(ProofError, match="no signed checkpoint: the run's writer signs one"):
        prove_event(tmp_path, 0)
    journal.write_bytes(journal.read_bytes()[:-1])
    with pytest.raises(ChainError, match="ends inside a segment"):
        prove_event(tmp_path, 0)


def test_no_growth_is_proven_from_what_the_log_does_not_bear_out(
    run: Run, make: Callable[..., Run], path: Path
) -> None:
    plateau = PlateauDetected(time=9.0, step=9, figures={})
    fork = make(run.groups[0], (plateau,))
    with pytest.raises(ChainError, match="first 4 events are not those the kept checkpoint"):
        prove_growth(path, parse_checkpoint(fork.note))


def test_both_spellings_of_a_fingerprint(run: Run, tmp_path: Path) -> None:
    key = run.key.public
    key.save(tmp_path / "key.pub")
    blob = base64.b64decode((tmp_path / "key.pub").read_text().split()[1])
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    assert key.openssh_fingerprint == f"SHA256:{digest}"  # as ssh-keygen -lf computes it
    for text in (key.fingerprint, key.openssh_fingerprint):
        assert Fingerprint(text).vouches_for(key)
        assert not Fingerprint(text).vouches_for(SigningKey.generate().public)
        for other in (text[:-1], text + "0", text.replace(":", ""), "", f" {text}", text[7:]):
            with pytest.raises(FingerprintError, match="wanted ed25519: and 64 hex digits"):
                Fingerprint(other)


def test_a_key_vouches_for_itself_alone(run: Run) -> None:
    assert run.key.public.vouches_for(PublicKey(run.key.public.raw))
    assert not run.key.public.vouches_for(SigningKey.generate().public)
