"""What the auditor's report says, and what it admits that it cannot exclude."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_events.chain import ChainVerifier
from esper_events.checkpoint import (
    Checkpoint,
    parse_checkpoint,
    write_checkpoint,
)
from esper_events.codec import encode_event
from esper_events.errors import ChainError
from esper_events.events import PlateauDetected
from esper_events.export import export_run
from esper_events.framing import END, frame
from esper_events.keys import SigningKey
from esper_events.reader import MAGIC, LogReader
from esper_events.segment import MAX_SEGMENT_BYTES, seal
from esper_events.verify import verify_path
from support.event_runs import Run, make_run, started


def test_a_whole_run(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path)
    report = verify_path(tmp_path, run.key.public)
    assert report.ok
    assert (report.events, report.segments, report.ended) == (7, 3, True)
    assert report.head == run.verifier().head.hex()
    assert (report.key, report.log) == (run.key.public.fingerprint, "run-1")
    assert report.checkpoint == 7
    assert report.message.startswith("whole: 7 events in 3 segments of log run-1, signed by")
    assert len(report.messages) == 2
    assert "rolled back or rewritten by the owner of the key" in report.messages[1]


def test_without_a_pinned_key_the_report_says_so(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path)
    assert any("taken from the log itself" in note for note in verify_path(tmp_path).messages)


def test_a_wrong_pinned_key_fails(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path)
    report = verify_path(tmp_path, SigningKey.generate().public)
    assert not report.ok
    assert report.message.startswith("segment 0, byte 4: signed by key")


def test_a_running_run_without_checkpoint_admits_what_a_cut_could_hide(
    running: Run, tmp_path: Path
) -> None:
    running.write(tmp_path, checkpoint=False)
    report = verify_path(tmp_path)
    assert report.ok
    assert not report.ended
    assert report.checkpoint is None
    assert "a cut at a segment boundary after the start is not excluded" in report.messages[1]


def test_a_running_run_behind_its_checkpoint_fails(run: Run, running: Run, tmp_path: Path) -> None:
    """The end cut off at a segment boundary: the checkpoint knows of it."""
    running.write(tmp_path)
    assert verify_path(tmp_path).ok
    write_checkpoint(tmp_path, run.note)
    report = verify_path(tmp_path)
    assert not report.ok
    assert "ends after segment 1 with 6 events" in report.message
    assert "commits to 7: it was cut or rolled back" in report.message


def test_events_behind_the_checkpoint_are_good_but_a_cut_among_them_is_not_excluded(
    running: Run, make: Callable[..., Run], tmp_path: Path
) -> None:
    first = make(running.groups[0])
    running.write(tmp_path)
    write_checkpoint(tmp_path, first.note)
    report = verify_path(tmp_path)
    assert report.ok
    assert (report.checkpoint, report.events) == (3, 6)
    assert "after event 2 is not excluded" in report.messages[1]


def test_a_checkpoint_inside_a_segment_is_checked_too(running: Run, tmp_path: Path) -> None:
    running.write(tmp_path)
    verifier = running.verifier()
    for size in range(1, 7):
        write_checkpoint(tmp_path, Checkpoint("run-1", size, bytes(32)).sign(running.key))
        report = verify_path(tmp_path)
        assert not report.ok
        assert f"the first {size} events are not those" in report.message
    write_checkpoint(tmp_path, Checkpoint("run-1", 6, verifier.tree.root()).sign(running.key))
    assert verify_path(tmp_path).ok


def test_forged_checkpoints_fail(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path)
    root, thief = run.verifier().tree.root(), SigningKey.generate()
    for note, reason in (
        (Checkpoint("run-1", 7, root).sign(thief), "signature does not fit"),
        (Checkpoint("run-2", 7, root).sign(run.key), "of log run-2, this is run-1"),
        (Checkpoint("run-1", 8, root).sign(run.key), "commits to 8"),
        (b"noise", "not a checkpoint"),
        (bytes(10_000), "over 1024 bytes"),
    ):
        write_checkpoint(tmp_path, note)
        report = verify_path(tmp_path)
        assert not report.ok
        assert reason in report.message


def test_a_history_forked_by_the_owner_contradicts_a_kept_checkpoint(
    run: Run, make: Callable[..., Run], tmp_path: Path
) -> None:
    """Everything signed anew and well, but not what was vouched for before."""
    plateau = PlateauDetected(time=9.0, step=9, figures={"loss": 0.1})
    fork = make(run.groups[0], (plateau, *run.groups[1][1:]), *run.groups[2:])
    fork.write(tmp_path)
    assert verify_path(tmp_path).ok
    write_checkpoint(tmp_path, run.note)
    report = verify_path(tmp_path)
    assert not report.ok
    assert "not those its signed checkpoint commits to" in report.message


@pytest.mark.parametrize("size", range(1, 8))
def test_a_kept_checkpoint_is_borne_out_by_the_log_it_is_of(
    run: Run, tmp_path: Path, size: int
) -> None:
    run.write(tmp_path)
    export_run(tmp_path, tmp_path / "run.esper")
    verifier = ChainVerifier()
    verifier.watch(size)
    for segment in run.segments:
        verifier.accept(segment)
    note = Checkpoint("run-1", size, verifier.watched_roots[size]).sign(run.key)
    for path in (tmp_path, tmp_path / "run.esper"):
        report = verify_path(path, kept=parse_checkpoint(note))
        assert report.ok
        assert report.kept == size
        assert f"the first {size} as the kept checkpoint has them" in report.message
        left = [f"rewritten after event {size - 1} by the owner"] if size < 7 else []
        assert len(report.messages) == 1 + len(left)
        assert all(text in report.messages[1] for text in left)


def test_a_kept_checkpoint_finds_a_cut_a_rollback_and_a_history_written_anew(
    run: Run, running: Run, make: Callable[..., Run], tmp_path: Path
) -> None:
    """Where the owner of the key signed a checkpoint for what he left, too."""
    plateau = PlateauDetected(time=9.0, step=9, figures={"loss": 0.1})
    thief = SigningKey.generate()
    for number, (other, reason) in enumerate(
        (
            (running, "with 6 events, but the kept checkpoint commits to 7: it was cut or rolled"),
            (make(run.groups[0]), "with 3 events, but the kept checkpoint commits to 7"),
            (
                make(run.groups[0], (plateau, *run.groups[1][1:]), *run.groups[2:]),
                "the first 7 events are not those the kept checkpoint commits to",
            ),
            (make_run(thief, ((started(thief),),)), "the kept checkpoint: the signature does not"),
        )
    ):
        other.write(tmp_path / str(number))
        assert verify_path(tmp_path / str(number)).ok
        report = verify_path(tmp_path / str(number), kept=parse_checkpoint(run.note))
        assert not report.ok
        assert report.kept is None
        assert reason in report.message


def test_a_checkpoint_kept_of_another_log_or_forged_fails(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path)
    root = run.verifier().tree.root()
    for note, reason in (
        (Checkpoint("run-2", 7, root).sign(run.key), "is of log run-2, this is run-1"),
        (Checkpoint("run-1", 7, root).sign(SigningKey.generate()), "the signature does not fit"),
        (Checkpoint("run-1", 7, bytes(32)).sign(run.key), "the first 7 events are not those"),
    ):
        report = verify_path(tmp_path, kept=parse_checkpoint(note))
        assert not report.ok
        assert reason in report.message


def test_a_run_made_up_under_another_key_is_caught_by_the_pinned_one(
    run: Run, tmp_path: Path
) -> None:
    thief = SigningKey.generate()
    make_run(thief, ((started(thief),),)).write(tmp_path)
    assert verify_path(tmp_path).ok
    assert not verify_path(tmp_path, run.key.public).ok


def test_what_is_no_run_is_a_report_and_no_exception(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    file = tmp_path / "file"
    file.write_bytes(b"")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    journal = tmp_path / "odd" / "journal"
    (journal / "segments").mkdir(parents=True)
    for path, reason in (
        (tmp_path / "missing", "No such file"),
        (empty, "holds no run, journal/segments is missing"),
        (file, "neither a run directory nor an exported run"),
        (pipe, "not a regular file"),
        (journal.parent, "not a regular file"),
        (loop, f"cannot be read: Too many levels of symbolic links: {loop}"),
        (Path("nul\0byte"), "cannot be read"),
        (Path("x" * 5000), "cannot be read"),
    ):
        report = verify_path(path)
        assert not report.ok
        assert reason in report.message
        assert (report.events, report.segments, report.key) == (0, 0, "")


def test_a_huge_claimed_length_is_refused(run: Run, tmp_path: Path) -> None:
    journal = run.write(tmp_path)
    for claim in (MAX_SEGMENT_BYTES + 1, 2**32 - 1):
        journal.write_bytes(claim.to_bytes(4, "big") + bytes(100))
        assert f"a segment of {claim} bytes is claimed" in verify_path(tmp_path).message


def test_a_record_is_handed_out_only_when_it_is_proven(run: Run, tmp_path: Path) -> None:
    journal = run.write(tmp_path)
    data = bytearray(journal.read_bytes())
    data[-1] ^= 1
    journal.write_bytes(data)
    seen: list[int] = []
    records = LogReader(tmp_path).records()
    with pytest.raises(ChainError, match="segment 2"):
        seen.extend(record.index for record in records)
    assert seen == list(range(6))


def test_the_good_beginning_is_counted(run: Run, tmp_path: Path) -> None:
    journal = run.write(tmp_path)
    with journal.open("r+b") as file:
        file.truncate(journal.stat().st_size - 1)
    report = verify_path(tmp_path)
    assert (report.events, report.segments, report.ended) == (6, 2, False)


@given(st.binary(max_size=300), st.sampled_from([b"", MAGIC, MAGIC + END]))
def test_noise_in_a_file_is_never_whole(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, start: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(start + noise)
    assert not verify_path(path).ok


@given(st.data())
def test_noise_under_a_good_signature_is_never_whole(
    run: Run, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The key's owner can sign anything; the verifier still reads it as hostile."""
    noise = data.draw(st.binary(min_size=1, max_size=60))
    verifier = make_run(run.key, run.groups[:1]).verifier()
    segment = seal([noise], log="run-1", first_index=3, previous=verifier.head, key=run.key)
    directory = tmp_path_factory.getbasetemp() / "signed-noise"
    journal = run.write(directory, checkpoint=False)
    journal.write_bytes(frame(run.segments[0]) + frame(segment))
    report = verify_path(directory)
    assert not report.ok
    assert report.message.startswith("segment 1, byte ")
    assert ", event 3: " in report.message


def test_long_segments_are_read(key: SigningKey, run: Run, tmp_path: Path) -> None:
    plateau = PlateauDetected(time=0.0, step=1, figures={f"{n:05}": 1.0 for n in range(20_000)})
    long = make_run(key, (run.groups[0], (plateau,) * 20))
    assert len(encode_event(plateau)) > 250_000
    long.write(tmp_path)
    export_run(tmp_path, tmp_path / "run.esper")
    assert verify_path(tmp_path).events == verify_path(tmp_path / "run.esper").events == 23
