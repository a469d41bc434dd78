"""Forgeries by somebody who knows the format: each is well-formed where it can be, and each is
refused with a message of its own that names what was found and what was wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from esper_events.anchor import Fingerprint
from esper_events.checkpoint import Checkpoint, SignedCheckpoint, parse_checkpoint, write_checkpoint
from esper_events.codec import encode_event
from esper_events.events import Event, PlateauDetected
from esper_events.framing import JOURNAL, frame
from esper_events.keys import SigningKey
from esper_events.merkle import MerkleTree, consistency_path, inclusion_path, leaf_hash
from esper_events.proof import ConsistencyProof, InclusionProof
from esper_events.segment import seal, segment_hash
from esper_events.verify import verify_path
from esper_events.verify_proof import verify_proof
from support.event_runs import LOG, ended, lattice, make_run, opening, seal_all, started

OWNER = SigningKey.generate()
WORKER = SigningKey.generate()
"""Another actor, whose key was stolen."""
GROUPS = (*opening(OWNER), (ended(),))
RUN = make_run(OWNER, GROUPS)
LEAVES = [encode_event(event) for group in GROUPS for event in group]
SIZE = len(LEAVES)
PLATEAU = PlateauDetected(time=9.0, step=9, figures={})


def commit(leaves: Sequence[bytes], key: SigningKey = OWNER, log: str = LOG) -> SignedCheckpoint:
    tree = MerkleTree()
    for leaf in leaves:
        tree.append(leaf)
    return parse_checkpoint(Checkpoint(log, tree.size, tree.root()).sign(key))


def prove(
    leaves: Sequence[bytes], index: int, key: SigningKey = OWNER, log: str = LOG
) -> InclusionProof:
    path = tuple(inclusion_path([leaf_hash(leaf) for leaf in leaves], index))
    return InclusionProof(key.public, leaves[index], index, path, commit(leaves, key, log))


def grow(leaves: Sequence[bytes], old: int, key: SigningKey = OWNER) -> ConsistencyProof:
    path = tuple(consistency_path([leaf_hash(leaf) for leaf in leaves], old))
    return ConsistencyProof(key.public, old, path, commit(leaves, key))


GOOD = prove(LEAVES, 4)
SIGNED = GOOD.signed
OTHER = [*LEAVES[:3], encode_event(PLATEAU), *LEAVES[4:]]
"""The same log with another event 3."""
SPELT = bytes([LEAVES[6][0]]) + LEAVES[6][1:].replace(b"\x14", b"\xcc\x14", 1)
"""The last event, its step 20 in two bytes."""


def test_what_the_forger_has_before_him_is_good(tmp_path: Path) -> None:
    file = tmp_path / "proof"
    file.write_bytes(GOOD.text())
    assert verify_proof(file, OWNER.public).ok
    file.write_bytes(grow(LEAVES, 6).text())
    assert verify_proof(file, kept=commit(LEAVES[:6])).ok
    RUN.write(tmp_path)
    assert verify_path(tmp_path, OWNER.public).ok
    assert LEAVES[6] != SPELT
    assert msgspec.msgpack.decode(SPELT)["step"] == msgspec.msgpack.decode(LEAVES[6])["step"]


INCLUSION: dict[str, tuple[InclusionProof, str]] = {
    "the path of another leaf": (
        replace(GOOD, path=prove(LEAVES, 5).path),
        "the path leads from this event at place 4 of 7 to the root",
    ),
    "another leaf with its own path and place, in a tree of another event": (
        replace(prove(OTHER, 3), signed=SIGNED),
        "the path leads from this event at place 3 of 7 to the root",
    ),
    "a path of a smaller tree": (
        replace(prove(LEAVES[:5], 4), signed=SIGNED),
        "got a path of 1 hashes, wanted 3 for leaf 4 of 7",
    ),
    "the leaf is a node of the tree": (
        replace(prove(LEAVES, 0), event=b"".join(map(leaf_hash, LEAVES[:2])),
                path=prove(LEAVES, 0).path[1:]),
        "got a path of 2 hashes, wanted 3 for leaf 0 of 7",
    ),
    "a truncated path": (
        replace(GOOD, path=GOOD.path[:-1]),
        "got a path of 2 hashes, wanted 3",
    ),
    "a doubled hash": (
        replace(GOOD, path=(*GOOD.path, GOOD.path[-1])),
        "got a path of 4 hashes, wanted 3",
    ),
    "an index beyond the tree": (
        replace(GOOD, index=7),
        "got leaf 7, wanted one of the tree's 7, from 0",
    ),
    "the checkpoint of another run of the same owner": (
        replace(GOOD, signed=commit(OTHER, log="run-2")),
        f"the checkpoint has {commit(OTHER).checkpoint.root.hex()}",
    ),
    "its origin renamed": (
        replace(GOOD, signed=replace(SIGNED, checkpoint=replace(SIGNED.checkpoint, log="run-2"))),
        f"its checkpoint names the key {SIGNED.key_hint.hex()}, wanted",
    ),
    "its origin renamed and the hint made to fit": (
        replace(GOOD, signed=SignedCheckpoint(
            renamed := replace(SIGNED.checkpoint, log="run-2"), renamed.key_hint(OWNER.public),
            SIGNED.signature)),
        "the signature does not fit its checkpoint's text and the key ed25519:",
    ),
    "the root exchanged": (
        replace(prove(OTHER, 3), signed=replace(SIGNED, checkpoint=commit(OTHER).checkpoint)),
        "the signature does not fit its checkpoint's text and the key",
    ),
    "all of it signed anew by another actor": (
        prove(LEAVES, 4, WORKER),
        f"made under the key {WORKER.public.fingerprint}, wanted {OWNER.public.fingerprint}",
    ),
    "signed by another actor, who names the owner's key": (
        replace(prove(LEAVES, 4, WORKER), key=OWNER.public),
        f"its checkpoint names the key {commit(LEAVES, WORKER).key_hint.hex()}, wanted "
        f"{SIGNED.key_hint.hex()}",
    ),
    "signed by another actor under the owner's hint": (
        replace(GOOD, signed=replace(commit(LEAVES, WORKER), key_hint=SIGNED.key_hint)),
        "the signature does not fit",
    ),
    "an event that its owner spelt in another way": (
        prove([*LEAVES[:6], SPELT], 6),
        "event 6: not the canonical encoding of its event",
    ),
    "what its owner signed is no event": (
        prove([*LEAVES[:6], b"\x80"], 6),
        "event 6: not an event: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("forgery", INCLUSION)
def test_a_forged_inclusion_proof_is_refused(forgery: str, tmp_path: Path) -> None:
    proof, reason = INCLUSION[forgery]
    (tmp_path / "proof").write_bytes(proof.text())
    report = verify_proof(tmp_path / "proof", OWNER.public)
    assert not report.ok
    assert len(report.messages) == 1
    assert reason in report.message
    assert (report.log, report.event, report.words) == ("", None, "")
    assert not verify_proof(tmp_path / "proof", Fingerprint(OWNER.public.fingerprint)).ok


KEPT: dict[str, tuple[InclusionProof, SignedCheckpoint, str]] = {
    "a forked history of the owner": (
        prove(OTHER, 3), SIGNED, "its 7 events are not the kept checkpoint's: the log has forked",
    ),
    "a history rolled back by the owner": (
        prove(LEAVES[:5], 4), SIGNED, "its checkpoint counts 5 events, the kept one 7",
    ),
    "another run of the owner": (
        prove(LEAVES, 4, log="run-2"), SIGNED, "of log run-2, the kept checkpoint is of run-1",
    ),
    "a run made up under another key": (
        prove(LEAVES, 4, WORKER), SIGNED,
        f"signed by {WORKER.public.fingerprint}, the kept checkpoint is not",
    ),
}  # fmt: skip


@pytest.mark.parametrize("forgery", KEPT)
def test_a_kept_checkpoint_refuses_what_a_key_alone_cannot(forgery: str, tmp_path: Path) -> None:
    proof, kept, reason = KEPT[forgery]
    (tmp_path / "proof").write_bytes(proof.text())
    assert verify_proof(tmp_path / "proof", proof.key).ok
    report = verify_proof(tmp_path / "proof", kept=kept)
    assert not report.ok
    assert reason in report.message


GROWTH: dict[str, tuple[ConsistencyProof, SignedCheckpoint, str]] = {
    "a forked history of the owner": (
        grow(OTHER, 6), commit(LEAVES[:6]), "the path leads to the root",
    ),
    "a fork, its path spliced from the true one": (
        replace(grow(OTHER, 6), path=grow(LEAVES, 6).path), commit(LEAVES[:6]),
        f"the proof's checkpoint has {commit(OTHER).checkpoint.root.hex()}",
    ),
    "a fork behind a full subtree": (
        grow(OTHER, 4), commit(LEAVES[:4]), "the path leads to the root",
    ),
    "a history rolled back": (
        replace(grow(LEAVES[:5], 5), old=6), commit(LEAVES[:6]),
        "got an older tree of 6 leaves, wanted 1 to 5",
    ),
    "from another checkpoint than the kept one": (
        grow(LEAVES, 5), commit(LEAVES[:6]), "goes on from 5 events, the kept checkpoint counts 6",
    ),
    "nothing shown of a larger tree": (
        replace(grow(LEAVES, 6), path=()), commit(LEAVES[:6]),
        "got a path of 0 hashes, wanted 3 for 6 in 7 leaves",
    ),
    "something shown of the same tree": (
        replace(grow(LEAVES, 7), path=(bytes(32),)), commit(LEAVES),
        "got a path of 1 hashes, wanted 0 for 7 in 7 leaves",
    ),
    "another root over as many events": (
        grow(OTHER, 7), commit(LEAVES), "the path leads to the root",
    ),
    "from before the first event": (
        replace(grow(LEAVES, 6), old=0), commit(LEAVES[:6]), "goes on from 0 events",
    ),
    "a history that another actor signed": (
        grow(LEAVES, 6, WORKER), commit(LEAVES[:6]),
        f"signed by {WORKER.public.fingerprint}, the kept checkpoint is not",
    ),
}  # fmt: skip


@pytest.mark.parametrize("forgery", GROWTH)
def test_a_forged_consistency_proof_is_refused(forgery: str, tmp_path: Path) -> None:
    proof, kept, reason = GROWTH[forgery]
    (tmp_path / "proof").write_bytes(proof.text())
    report = verify_proof(tmp_path / "proof", kept=kept)
    assert not report.ok
    assert len(report.messages) == 1
    assert reason in report.message


def sealed(
    events: Sequence[Event | bytes],
    *after: bytes,
    key: SigningKey = OWNER,
    first: int = 3,
    log: str = LOG,
) -> bytes:
    """A segment of its own behind the segments ``after``."""
    data = [event if isinstance(event, bytes) else encode_event(event) for event in events]
    previous = segment_hash(after[-1]) if after else bytes(32)
    return seal(data, log=log, first_index=first, previous=previous, key=key)


FIRST, SECOND, THIRD = RUN.segments
STRANGER = make_run(WORKER, ((started(WORKER), lattice("fc")),))
TWIN = seal_all(OWNER, ((started(OWNER), lattice("fc", "other"), PLATEAU), *GROUPS[1:]))
"""Another run of the owner that bears the same log id."""
LOGS: dict[str, tuple[tuple[bytes, ...], str]] = {
    "a segment of another run put in": (
        (FIRST, seal_all(OWNER, GROUPS, log="run-2")[1], THIRD),
        "belongs to log 'run-2', not to 'run-1'",
    ),
    "a segment of another run under the same name": (
        (FIRST, TWIN[1], THIRD),
        "does not follow the segment before it: their hashes differ",
    ),
    "a suffix signed anew by another actor": (
        (FIRST, again := sealed(GROUPS[1], FIRST, key=WORKER),
         sealed(GROUPS[2], again, key=WORKER, first=6)),
        f"signed by key {WORKER.public.id.hex()}, wanted {OWNER.public.id.hex()}",
    ),
    "a suffix of another actor under the owner's key id": (
        (FIRST, again.replace(WORKER.public.id, OWNER.public.id), THIRD),
        "the signature does not fit the bytes",
    ),
    "the genesis replayed": ((FIRST, FIRST, SECOND), "begins with event 0, wanted 3"),
    "the genesis signed anew where it is replayed": (
        (FIRST, sealed([started(OWNER)], FIRST)),
        "event 3: the run starts a second time",
    ),
    "a genesis that names another key": (
        (sealed([started(WORKER)], first=0),),
        f"names another key as its trainer's than {OWNER.public.fingerprint}",
    ),
    "the end taken back": (
        (FIRST, SECOND, THIRD, sealed([PLATEAU], THIRD, first=7)),
        "event 7: an event after the end of the run",
    ),
    "an event spelt in another way": (
        (FIRST, SECOND, sealed([SPELT], SECOND, first=6)),
        "event 6: not the canonical encoding of its event (1",
    ),
    "a log of another actor": (
        STRANGER.segments,
        f"signed by key {WORKER.public.id.hex()}, wanted {OWNER.public.id.hex()}",
    ),
}  # fmt: skip


def lay(directory: Path, segments: Sequence[bytes], note: bytes | None = None) -> None:
    (directory / JOURNAL).parent.mkdir(exist_ok=True)
    (directory / JOURNAL).write_bytes(b"".join(map(frame, segments)))
    if note is not None:
        write_checkpoint(directory, note)


@pytest.mark.parametrize("forgery", LOGS)
def test_a_forged_log_is_refused(forgery: str, tmp_path: Path) -> None:
    segments, reason = LOGS[forgery]
    lay(tmp_path, segments)
    report = verify_path(tmp_path, OWNER.public)
    assert not report.ok
    assert reason in report.message


def test_a_log_of_another_actor_is_refused_by_the_fingerprint_alone(tmp_path: Path) -> None:
    lay(tmp_path, STRANGER.segments, STRANGER.note)
    assert verify_path(tmp_path).ok
    for wanted in (OWNER.public.fingerprint, OWNER.public.openssh_fingerprint):
        report = verify_path(tmp_path, Fingerprint(wanted))
        assert not report.ok
        key = STRANGER.key.public.fingerprint
        assert f"event 0: the trainer's key is {key}, wanted {wanted}" in report.message
    assert verify_path(tmp_path, Fingerprint(WORKER.public.openssh_fingerprint)).ok


@pytest.mark.parametrize(
    ("note", "reason"),
    [
        (lambda: commit(LEAVES, WORKER).note(), "the signature does not fit its text and the log"),
        (lambda: commit(OTHER).note(), "the first 7 events are not those its signed checkpoint"),
        (lambda: commit([*LEAVES, b"x"]).note(), "commits to 8: it was cut or rolled back"),
        (lambda: commit(LEAVES, log="run-2").note(), "is of log run-2, this is run-1"),
    ],
)
def test_a_forged_checkpoint_beside_a_good_log_is_refused(
    note: Callable[[], bytes], reason: str, tmp_path: Path
) -> None:
    lay(tmp_path, RUN.segments, note())
    report = verify_path(tmp_path)
    assert not report.ok
    assert reason in report.message
