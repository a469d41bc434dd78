"""Following a log that grows."""

from __future__ import annotations

from pathlib import Path

import pytest

from esper_events.checkpoint import Checkpoint, write_checkpoint
from esper_events.codec import encode_event
from esper_events.errors import ChainError
from esper_events.events import Record
from esper_events.follow import LogFollower
from esper_events.framing import JOURNAL, frame
from esper_events.keys import SigningKey
from esper_events.reader import LogReader
from support.event_runs import LOG, Run, ended, make_run, opening, seal_all


def lay(directory: Path, data: bytes) -> Path:
    """A run directory whose journal holds ``data``."""
    (directory / JOURNAL).parent.mkdir(parents=True, exist_ok=True)
    (directory / JOURNAL).write_bytes(data)
    return directory


def signed(run: Run, size: int) -> bytes:
    """The checkpoint that the run's writer leaves after ``size`` events."""
    groups, events = [], [event for group in run.groups for event in group]
    groups.append(events[:size])
    return make_run(run.key, groups).note


def test_a_log_that_grows_a_few_bytes_at_a_time_is_told_once_and_in_order(
    run: Run, tmp_path: Path
) -> None:
    whole = b"".join(map(frame, run.segments))
    follower = LogFollower(lay(tmp_path, b""))
    told: list[Record] = []
    for size in (*range(0, len(whole), 7), len(whole)):
        lay(tmp_path, whole[:size])
        told += follower.records()
        assert follower.verifier.ended is (size == len(whole))
    assert not follower.has_more()
    run.write(tmp_path)
    reader = LogReader(tmp_path)
    assert [(r.index, encode_event(r.event)) for r in told] == [
        (r.index, encode_event(r.event)) for r in reader.records()
    ]
    assert follower.verifier.head == reader.verifier.head
    assert list(follower.records()) == []
    assert follower.signed is not None and follower.signed == reader.signed


def test_there_is_more_until_it_was_read(run: Run, tmp_path: Path) -> None:
    first, *rest = map(frame, run.segments)
    follower = LogFollower(lay(tmp_path, first))
    for data in (first, first + b"".join(rest)):
        lay(tmp_path, data)
        assert follower.has_more()
        assert list(follower.records())
        assert not follower.has_more()


def test_each_checkpoint_is_held_to_the_events_that_it_counts(run: Run, tmp_path: Path) -> None:
    first, second, third = map(frame, run.segments)
    follower = LogFollower(lay(tmp_path, first))
    for data, size, borne_out in (
        (first, None, None),
        (first, 3, 3),  # written behind what was read
        (first + second, 3, 3),  # of before
        (first + second + third, 6, 6),  # not of all that is there
    ):
        lay(tmp_path, data)
        if size is not None:
            write_checkpoint(tmp_path, signed(run, size))
        list(follower.records())
        assert (follower.signed and follower.signed.checkpoint.size) == borne_out
    write_checkpoint(tmp_path, signed(run, 3))
    assert list(follower.records()) == []


@pytest.mark.parametrize("at", [3, 6, 7])
def test_a_checkpoint_of_other_events_is_refused(run: Run, tmp_path: Path, at: int) -> None:
    first, *rest = map(frame, run.segments)
    follower = LogFollower(lay(tmp_path, first))
    list(follower.records())
    lay(tmp_path, first + b"".join(rest))
    write_checkpoint(tmp_path, Checkpoint(LOG, at, b"\7" * 32).sign(run.key))
    with pytest.raises(ChainError, match=f"the first {at} events are not those"):
        list(follower.records())


def test_a_log_that_ends_before_its_checkpoint_was_cut(run: Run, tmp_path: Path) -> None:
    lay(tmp_path, frame(run.segments[0]))
    write_checkpoint(tmp_path, run.note)
    with pytest.raises(ChainError, match="commits to 7: it was cut or rolled back"):
        list(LogFollower(tmp_path).records())


def test_a_journal_that_becomes_shorter_was_cut(run: Run, tmp_path: Path) -> None:
    first, second, _ = map(frame, run.segments)
    follower = LogFollower(lay(tmp_path, first + second))
    list(follower.records())
    lay(tmp_path, first)
    assert follower.has_more()
    with pytest.raises(ChainError, match="the journal was cut"):
        list(follower.records())


def test_a_segment_that_does_not_go_on_from_what_was_read_is_refused_with_its_place(
    run: Run, key: SigningKey, tmp_path: Path
) -> None:
    first, second, third = map(frame, run.segments)
    follower = LogFollower(lay(tmp_path, first))
    list(follower.records())
    start, *others = opening(key)
    forged = frame(seal_all(key, ((*start[:2], start[2]), (*others[0][:1],), (ended(),)))[1])
    for data, match in (
        (first + third, "segment 1, byte .*begins with event 6, wanted 3"),
        (first + forged[:-1] + b"\0", "segment 1, byte .*the signature does not fit"),
        (first + bytes(4), "segment 1, byte .*a segment of 0 bytes is claimed"),
    ):
        fresh = LogFollower(lay(tmp_path / "one", first))
        list(fresh.records())
        lay(tmp_path / "one", data)
        with pytest.raises(ChainError, match=match):
            list(fresh.records())
    lay(tmp_path, first + second)
    assert len(list(follower.records())) == 3


def test_the_key_is_pinned_and_a_run_has_to_be_there(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path / "run")
    with pytest.raises(ChainError, match="signed by key"):
        list(LogFollower(tmp_path / "run", SigningKey.generate().public).records())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ChainError, match="holds no run"):
        LogFollower(tmp_path / "empty").has_more()
