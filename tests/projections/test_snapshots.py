"""Snapshots: a cache that is used where it fits the verified log, and passed over with a word
where it does not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from esper.projections import snapshots
from esper.projections.canonical import canonical_bytes
from esper.projections.catalogue import AUDIT, CONTROLLER, LATTICE
from esper.projections.replay import OutOfRangeError, Replayed, replay
from esper.projections.snapshots import SNAPSHOTS, Snapshot, SnapshotError, load, restore, save
from esper_events.errors import ChainError
from esper_events.events import Event
from esper_events.export import export_run
from esper_events.framing import JOURNAL
from esper_events.keys import SigningKey
from esper_events.stages import Stage
from support.event_runs import Run, applied, decided, ended, make_run, opening

KEY = SigningKey.generate()
MORE: tuple[tuple[Event, ...], ...] = (
    (decided(2, Stage.GERMINATED, Stage.TRAINING), applied(2)),
    (ended(),),
)
RUN = make_run(KEY, (*opening(KEY), *MORE))
TOTAL = 9


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three groups of events, 3 + 3 + 2 + 1."""
    return lay_out(RUN, tmp_path / "run")


def lay_out(run: Run, directory: Path) -> Path:
    run.write(directory)
    return directory


def cached(run: Path, to: int | None = None) -> Replayed[object]:
    """Replay the lattice with the cache; its digest must be that of the log alone."""
    replayed = replay(run, LATTICE, to, cached=True)
    assert replayed.digest == replay(run, LATTICE, to).digest
    return replayed


def refused(run: Path, word: str) -> None:
    """The run's snapshot is passed over with a word, and replaced by a good one."""
    replayed = cached(run)
    assert replayed.snapshot == 0
    (note,) = replayed.notes
    assert note.startswith("the snapshot of the lattice is ignored: ")
    assert word in note
    again = cached(run)
    assert (again.snapshot, again.notes) == (TOTAL, ())


def forged(run: Path, **changes: object) -> Snapshot:
    """Put a snapshot in place that is undamaged, but not what it was."""
    found = load(run, LATTICE)
    assert found is not None
    snapshot = msgspec.structs.replace(found, **changes)
    save(run, snapshot)
    return snapshot


def file(run: Path) -> Path:
    return run / SNAPSHOTS / "lattice"


@pytest.mark.parametrize("at", range(1, TOTAL + 1))
def test_a_snapshot_is_begun_at_also_in_the_middle_of_a_segment(run: Path, at: int) -> None:
    first = cached(run, at)
    assert (first.snapshot, first.seq, first.notes) == (0, at, ())
    rest = cached(run)
    assert (rest.snapshot, rest.seq, rest.records, rest.notes) == (at, TOTAL, TOTAL, ())


def test_nothing_is_written_unless_it_is_asked_for(run: Path) -> None:
    replay(run, LATTICE)
    assert not (run / SNAPSHOTS).exists()
    cached(run, 0)
    assert not (run / SNAPSHOTS).exists()


def test_each_projection_has_its_own(run: Path) -> None:
    cached(run, 4)
    assert replay(run, CONTROLLER, cached=True).snapshot == 0
    assert cached(run).snapshot == 4


def test_a_later_snapshot_is_of_no_use_to_an_earlier_place_and_stays(run: Path) -> None:
    cached(run)
    earlier = cached(run, 5)
    assert (earlier.snapshot, earlier.notes) == (0, ())
    assert cached(run).snapshot == TOTAL


def test_a_snapshot_taken_while_the_run_went_on_serves_when_it_has_ended(tmp_path: Path) -> None:
    run = lay_out(make_run(KEY, opening(KEY)), tmp_path)
    assert cached(run).seq == 6
    lay_out(RUN, run)
    assert cached(run).snapshot == 6


def test_the_log_is_verified_whatever_the_snapshot_says(run: Path) -> None:
    cached(run)
    journal = run / JOURNAL
    data = bytearray(journal.read_bytes())
    data[40] ^= 1
    journal.write_bytes(data)
    with pytest.raises(ChainError, match="segment 0, byte 4: "):
        replay(run, LATTICE, cached=True)


def test_damage_is_noticed_wherever_it_is(run: Path) -> None:
    cached(run)
    path = file(run)
    for _ in flips_and_cuts(path):
        with pytest.raises(SnapshotError, match="damaged"):
            load(run, LATTICE)
    path.write_bytes(path.read_bytes() + b"\0")
    refused(run, "it is damaged: its digest does not fit its bytes")


def flips_and_cuts(path: Path) -> Iterator[None]:
    """Each bit flipped in turn, then each shorter length."""
    whole = path.read_bytes()
    descriptor = os.open(path, os.O_RDWR)
    for at, byte in enumerate(whole):
        for bit in range(8):
            os.pwrite(descriptor, bytes([byte ^ 1 << bit]), at)
            yield
        os.pwrite(descriptor, bytes([byte]), at)
    for length in reversed(range(len(whole))):
        os.truncate(path, length)
        yield
    os.close(descriptor)
    path.write_bytes(whole)


def test_bytes_that_are_no_snapshot_are_refused_though_their_digest_fits(run: Path) -> None:
    (run / SNAPSHOTS).mkdir()
    body = b"\x80"
    file(run).write_bytes(b"esper snapshot 1\n" + hashlib.sha256(body).digest() + body)
    refused(run, "it is no snapshot")


def test_one_of_another_projection_is_refused(run: Path) -> None:
    replay(run, AUDIT, cached=True)
    (run / SNAPSHOTS / "audit").rename(file(run))
    refused(run, "it is one of the audit projection")


def test_a_stale_one_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr(snapshots, "code_version", lambda: "0" * 64)
        cached(run)
    refused(run, "it is stale: another version of Esper folded it")


def test_one_of_another_log_is_refused(run: Path) -> None:
    cached(run)
    forged(run, log="another")
    refused(run, "it is of log another, this is run-1")


def test_one_of_another_history_of_the_same_name_is_refused(run: Path, tmp_path: Path) -> None:
    other = SigningKey.generate()
    elsewhere = lay_out(make_run(other, (*opening(other), *MORE)), tmp_path / "other")
    cached(elsewhere)
    (run / SNAPSHOTS).mkdir()
    file(run).write_bytes(file(elsewhere).read_bytes())
    refused(run, "it is of another history: the log's chain has another head there")


def test_one_of_the_future_is_refused(run: Path, tmp_path: Path) -> None:
    cached(run)
    rolled_back = lay_out(make_run(KEY, opening(KEY)), tmp_path / "shorter")
    (rolled_back / SNAPSHOTS).mkdir()
    file(rolled_back).write_bytes(file(run).read_bytes())
    replayed = cached(rolled_back)
    assert (replayed.snapshot, replayed.seq) == (0, 6)
    assert "it is of 9 records, the log holds 6" in replayed.notes[0]
    assert cached(rolled_back).snapshot == 6


@pytest.mark.parametrize("seq", [-1, 0])
def test_one_at_no_place_is_refused(run: Path, seq: int) -> None:
    cached(run)
    forged(run, seq=seq)
    refused(run, "it is of another history")


def test_a_state_of_another_place_or_another_spelling_is_refused(run: Path) -> None:
    cached(run, 3)
    state = replay(run, LATTICE, 4).state
    other = forged(run, state=canonical_bytes(state))
    with pytest.raises(SnapshotError, match="not the one that it was taken of"):
        restore(LATTICE, other)
    spelt = msgspec.msgpack.encode(replay(run, LATTICE, 3).state)
    assert spelt != canonical_bytes(replay(run, LATTICE, 3).state)
    with pytest.raises(SnapshotError, match="not the one that it was taken of"):
        restore(LATTICE, msgspec.structs.replace(other, state=spelt))
    forged(run, state=b"\x90")
    refused(run, "it holds no state of the lattice")


def test_one_that_cannot_be_read_or_written_is_only_a_word(run: Path) -> None:
    (run / SNAPSHOTS).mkdir()
    os.mkfifo(file(run))
    replayed = cached(run)
    assert "it is no regular file" in replayed.notes[0]
    assert cached(run).snapshot == TOTAL
    file(run).unlink()
    (run / SNAPSHOTS).rmdir()
    (run / SNAPSHOTS).write_text("in the way")
    (note,) = cached(run).notes
    assert note.startswith("no snapshot was kept: ")


def test_one_that_is_too_large_is_not_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(run)
    monkeypatch.setattr(snapshots, "MAX_SNAPSHOT_BYTES", 10)
    with pytest.raises(SnapshotError, match="larger than 10 bytes"):
        load(run, LATTICE)


def test_an_exported_file_has_none(run: Path, tmp_path: Path) -> None:
    cached(run)
    export_run(run, tmp_path / "run.esper")
    replayed = replay(tmp_path / "run.esper", LATTICE, cached=True)
    assert replayed.snapshot == 0
    assert replayed.digest == replay(run, LATTICE).digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.esper"]


@pytest.mark.parametrize("to", [-1, TOTAL + 1])
def test_a_place_that_the_log_does_not_have_is_an_error(run: Path, to: int) -> None:
    with pytest.raises(OutOfRangeError, match=f"got {to}, wanted"):
        replay(run, LATTICE, to)


def test_who_can_write_in_the_directory_can_deceive_the_cache_but_not_the_log(run: Path) -> None:
    cached(run)
    lie = msgspec.structs.replace(replay(run, LATTICE).state, lapsed=99)
    forged(run, state=canonical_bytes(lie))
    assert replay(run, LATTICE, cached=True).state.lapsed == 99
    assert replay(run, LATTICE).state.lapsed == 0
