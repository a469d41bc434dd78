"""An auditor who is older than a log checks all of it, and says what could not be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.cli import failures
from esper.cli.main import esper as group
from esper_events.certificate import Role, certify
from esper_events.chain import ChainVerifier
from esper_events.checkpoint import Checkpoint
from esper_events.codec import encode_event
from esper_events.errors import ChainError, CodecError
from esper_events.events import KeyCertified
from esper_events.export import export_run
from esper_events.framing import JOURNAL, longest_valid_prefix
from esper_events.importing import import_run
from esper_events.keys import SigningKey
from esper_events.newer import AuditVerifier
from esper_events.segment import GENESIS, seal, segment_hash
from esper_events.stages import Stage
from esper_events.verify import verify_path
from support.authorities import revoked
from support.event_runs import LOG, Run, blueprint, decided, ended, lattice, started
from support.signed_logs import SignedLog

KEY = SigningKey.generate()
FUTURE = msgspec.msgpack.encode({"kind": "seed.split", "time": 2.5, "into": [1, 2], "why": None})


def of_version(key: SigningKey, version: str) -> bytes:
    return encode_event(msgspec.structs.replace(started(key), version=version))


def with_field(data: bytes) -> bytes:
    return msgspec.msgpack.encode(msgspec.msgpack.decode(data) | {"mood": {"x": 1}})


def sealed(key: SigningKey, *groups: Sequence[bytes]) -> list[bytes]:
    segments: list[bytes] = []
    first, previous = 0, GENESIS
    for events in groups:
        segments.append(seal(events, log=LOG, first_index=first, previous=previous, key=key))
        first, previous = first + len(events), segment_hash(segments[-1])
    return segments


def newer(key: SigningKey, version: str = "9.0.0") -> list[bytes]:
    return sealed(
        key,
        [with_field(of_version(key, version)), FUTURE],
        [with_field(encode_event(lattice("fc"))), encode_event(blueprint())],
        [encode_event(decided(1, Stage.DORMANT, Stage.GERMINATED)), FUTURE],
        [with_field(encode_event(ended()))],
    )


def test_a_newer_log_is_checked_and_what_cannot_be_read_is_counted(key: SigningKey) -> None:
    verifier = AuditVerifier(key.public)
    records = [record for segment in newer(key)[:-1] for record in verifier.accept(segment)]
    assert [record.index for record in records] == [0, 2, 3, 4]
    assert verifier.passed_over == {"seed.split": 2}
    assert (verifier.events, verifier.version) == (6, "9.0.0")
    assert "2 seed.split" in verifier.findings[0]
    # The rules hold for what can be read: this run leaves a decision open.
    with pytest.raises(ChainError, match="neither applied nor lapsed"):
        verifier.accept(newer(key)[-1])


CLAIM = msgspec.msgpack.encode({"kind": "seed.split", "time": 2.5, "version": "9.0.0"})


@pytest.mark.parametrize("version", ["0.1.0", "0.0.9", "", "soon", "v9.0.0"])
def test_in_a_log_that_is_not_newer_it_is_damage(key: SigningKey, version: str) -> None:
    with pytest.raises(ChainError, match="unknown field"):
        AuditVerifier().accept(newer(key, version)[0])
    for event in (FUTURE, CLAIM):
        verifier = AuditVerifier()
        begun, unknown = sealed(key, [of_version(key, version)], [event])
        verifier.accept(begun)
        with pytest.raises(ChainError, match=r"seed\.split"):
            verifier.accept(unknown)


def test_who_draws_something_from_a_log_refuses_what_it_cannot_read(key: SigningKey) -> None:
    with pytest.raises(ChainError, match=r"unknown field .*written by Esper 9\.0\.0, read it with"):
        ChainVerifier().accept(newer(key)[0])
    verifier = ChainVerifier()
    begun, unknown = sealed(key, [of_version(key, "9.0.0")], [FUTURE])
    verifier.accept(begun)
    with pytest.raises(ChainError, match=r"seed\.split.*written by Esper 9\.0\.0"):
        verifier.accept(unknown)


def test_every_flipped_bit_of_a_newer_log_is_found(key: SigningKey) -> None:
    first, second = newer(key)[:2]
    for at in range(0, len(second), 3):
        verifier = AuditVerifier(key.public)
        verifier.accept(first)
        with pytest.raises(ChainError):
            verifier.accept(second[:at] + bytes([second[at] ^ 4]) + second[at + 1 :])


SPOILT = {
    "not canonical": FUTURE.replace(b"\x01\x02", b"\xcc\x01\x02"),
    "kind not first": msgspec.msgpack.encode({"time": 2.5, "kind": "seed.split"}),
    "no name": msgspec.msgpack.encode({"kind": "Seed Split\n", "time": 2.5}),
    "kind a number": msgspec.msgpack.encode({"kind": 7, "time": 2.5}),
    "no time": msgspec.msgpack.encode({"kind": "seed.split"}),
    "time a text": msgspec.msgpack.encode({"kind": "seed.split", "time": "now"}),
    "doubled field": b"\x83\xa4kind\xaaseed.split\xa4time\xcb"
    + bytes(8)
    + b"\xa4time\xcb"
    + bytes(8),
    "no map": msgspec.msgpack.encode(["seed.split"]),
    "two": FUTURE + FUTURE,
    "nothing": b"\xc0",
    "deep": b"\x82\xa4kind\xaaseed.split\xa4time" + b"\x91" * 5000 + b"\xc0",
    "known kind without its fields": msgspec.msgpack.encode({"kind": "run.ended", "time": 2.5}),
    "known kind with another type": msgspec.msgpack.encode(
        {"kind": "plateau.detected", "time": 2.5, "step": "three", "figures": {}, "new": 1}
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_not_everything_passes_for_newer(key: SigningKey, name: str) -> None:
    verifier = AuditVerifier()
    begun, spoilt = sealed(key, [of_version(key, "9.0.0")], [SPOILT[name]])
    verifier.accept(begun)
    with pytest.raises(ChainError):
        verifier.accept(spoilt)


@given(st.binary(max_size=200))
def test_no_bytes_upset_the_reader(data: bytes) -> None:
    verifier = AuditVerifier()
    verifier.accept(sealed(KEY, [of_version(KEY, "9.0.0")])[0])
    try:
        event = verifier.unread(data)
    except CodecError:
        return
    assert event is None or encode_event(event)


def test_nothing_follows_the_end(key: SigningKey) -> None:
    verifier = AuditVerifier()
    *whole, behind = sealed(key, [of_version(key, "9.0.0")], [encode_event(ended())], [FUTURE])
    for segment in whole:
        verifier.accept(segment)
    with pytest.raises(ChainError, match="after the end"):
        verifier.accept(behind)


def test_only_the_trainer_writes_what_is_not_known(key: SigningKey) -> None:
    root, worker = SigningKey.generate(), SigningKey.generate()
    begun = msgspec.structs.replace(
        started(key), version="9.0.0", certificate=certify(root, key.public, Role.TRAINER)
    )
    certified = KeyCertified(time=2.0, certificate=certify(root, worker.public, Role.WORKER))
    verifier = AuditVerifier()
    for segment in SignedLog().say(key, begun).say(root, certified).segments:
        verifier.accept(segment)
    data = seal([FUTURE], log=LOG, first_index=verifier.events, previous=verifier.head, key=worker)
    with pytest.raises(ChainError, match="may not write seed.split"):
        verifier.accept(data)


def test_the_verbs_tell_what_was_passed_over(
    key: SigningKey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, export = tmp_path / "run", tmp_path / "run.esper"
    segments = newer(key)[:-1]
    verifier = AuditVerifier()
    for segment in segments:
        verifier.accept(segment)
    note = Checkpoint(LOG, verifier.events, verifier.tree.root()).sign(key)
    Run(key, (), tuple(segments), note).write(run)
    assert longest_valid_prefix(run / JOURNAL) == (3, (run / JOURNAL).stat().st_size)
    export_run(run, export)
    import_run(export, tmp_path / "again")
    for path in (run, export, tmp_path / "again"):
        report = verify_path(path, key.public)
        assert report.ok, report.message
        assert "written by Esper 9.0.0" in report.messages[-1]
        assert failures.run(group, ["show", "--all", str(path)]) == 0
        told = capsys.readouterr()
        assert "written by Esper 9.0.0" in told.err
        assert "decision 1" in told.out
        assert failures.run(group, ["replay", str(path)]) == 1
        assert "read it with that or a later one" in capsys.readouterr().err


def test_what_cannot_be_read_raises_no_epoch_and_is_not_trusted_behind_a_bound(
    key: SigningKey,
) -> None:
    root = SigningKey.generate()
    genesis = msgspec.structs.replace(
        started(key), version="9.0.0", certificate=certify(root, key.public, Role.TRAINER)
    )

    def log(*behind: tuple[SigningKey, bytes, int]) -> AuditVerifier:
        verifier = AuditVerifier(root.public)
        verifier.accept(sealed(key, [encode_event(genesis)])[0])
        for by, event, epoch in behind:
            first, previous = verifier.events, verifier.head
            verifier.accept(
                seal([event], log=LOG, first_index=first, previous=previous, key=by, epoch=epoch)
            )
        return verifier

    with pytest.raises(ChainError, match="lease epoch 1 begins without run.taken_over"):
        log((key, FUTURE, 1))
    for since, trusted in ((1, False), (2, True)):
        revocation = encode_event(revoked(key, root, since))
        bound = log((key, FUTURE, 0), (root, revocation, 0)).authority.distrust.first()
        assert (bound is None) is trusted
