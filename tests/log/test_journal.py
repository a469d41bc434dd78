"""The journal: what a crash leaves, when it syncs, and what a failing disk does."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from esper.log.errors import ConflictError, JournalError
from esper.log.journal import JournalStore
from esper_events.keys import SigningKey
from support.log_runs import sealed


def write(directory: Path, segments: list[bytes]) -> None:
    store = JournalStore(directory)
    for position, segment in enumerate(segments, start=store.count):
        store.append(position, segment)
    store.close()


def test_a_journal_cut_at_any_byte_opens_at_its_longest_valid_prefix(
    tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a thousand openings need no disk
    segments = sealed(key, 3)
    write(tmp_path / "whole", segments)
    whole = (tmp_path / "whole" / "segments").read_bytes()
    ends = [0]
    for segment in segments:
        ends.append(ends[-1] + 4 + len(segment))
    directory = tmp_path / "cut"
    directory.mkdir()
    for cut in range(len(whole)):
        for leftover in directory.iterdir():
            leftover.unlink()
        (directory / "segments").write_bytes(whole[:cut])
        store = JournalStore(directory)
        good = sum(end <= cut for end in ends[1:])
        assert store.count == good
        assert list(store.read()) == segments[:good]
        torn = whole[ends[good] : cut]
        kept = [path.read_bytes() for path in directory.glob("torn-*")]
        assert kept == ([torn] if torn else [])
        store.append(good, segments[good])
        assert list(store.read()) == segments[: good + 1]
        store.close()


def test_every_torn_tail_is_kept(tmp_path: Path, key: SigningKey) -> None:
    segments = sealed(key, 3)
    write(tmp_path, segments[:1])
    for number, tail in enumerate([b"\x00" * 9, b"\xff", segments[2]]):
        with (tmp_path / "segments").open("ab") as file:
            file.write(tail)
        JournalStore(tmp_path).close()
        assert (tmp_path / f"torn-{number}").read_bytes() == tail
    assert list(JournalStore(tmp_path).read()) == segments[:1]


def test_a_valid_frame_that_breaks_the_chain_is_set_aside(tmp_path: Path, key: SigningKey) -> None:
    segments = sealed(key, 3)
    write(tmp_path, [segments[0]])
    foreign = len(segments[2]).to_bytes(4, "big") + segments[2]
    with (tmp_path / "segments").open("ab") as file:
        file.write(foreign)
    assert JournalStore(tmp_path).count == 1
    assert (tmp_path / "torn-0").read_bytes() == foreign


def test_a_second_writer_is_refused_until_the_first_has_closed(
    tmp_path: Path, key: SigningKey
) -> None:
    first = JournalStore(tmp_path)
    with pytest.raises(ConflictError, match="another process"):
        JournalStore(tmp_path)
    first.close()
    JournalStore(tmp_path).close()


def test_a_segment_is_synced_before_it_counts(
    tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is synced with the whole frame in it, and the directory once it is created."""
    synced: list[tuple[str, int]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append((path, os.fstat(descriptor).st_size))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store = JournalStore(tmp_path / "journal")
    assert str(tmp_path / "journal") in [path for path, _ in synced]
    assert str(tmp_path) in [path for path, _ in synced]
    size = 0
    for position, segment in enumerate(sealed(key, 3)):
        synced.clear()
        store.append(position, segment)
        size += 4 + len(segment)
        assert synced == [(str(tmp_path / "journal" / "segments"), size)]
    store.close()


def test_what_a_killed_process_wrote_is_synced_before_it_counts(
    tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been killed between its write and its sync, with all in the page cache only."""
    write(tmp_path, sealed(key, 2))
    path = tmp_path / "segments"
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    store = JournalStore(tmp_path)
    assert store.count == 2
    assert str(path) in synced
    store.close()


def test_a_failed_sync_is_never_taken_back(
    tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed fsync the kernel may drop the pages: a later success would prove nothing."""
    segments = sealed(key, 2)
    store = JournalStore(tmp_path)
    store.append(0, segments[0])
    with monkeypatch.context() as patch:

        def fail(_: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr(os, "fsync", fail)
        with pytest.raises(JournalError, match="Input/output error"):
            store.append(1, segments[1])
    with pytest.raises(JournalError, match="Input/output error"):
        store.append(1, segments[1])
    assert list(store.read()) == segments[:1]
    store.close()
    assert list(JournalStore(tmp_path).read()) == segments[:1]


def test_a_full_disk_leaves_whole_segments_only(tmp_path: Path, key: SigningKey) -> None:
    segments = sealed(key, 3)
    store = JournalStore(tmp_path)
    store.append(0, segments[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(segments[0]) + 100, hard))
    try:
        with pytest.raises(JournalError, match="File too large"):
            store.append(1, segments[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    store.close()
    assert (tmp_path / "segments").read_bytes() == len(segments[0]).to_bytes(4, "big") + segments[0]
    assert not list(tmp_path.glob("torn-*"))


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot open the journal"):
        JournalStore(tmp_path / "file" / "journal")
