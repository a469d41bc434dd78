"""The journal file: frames in, frames out, and where the good part ends."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_events.errors import ChainError, SegmentError
from esper_events.framing import END, frame, longest_valid_prefix, read_frames
from esper_events.segment import MAX_SEGMENT_BYTES
from support.event_runs import Run

SEGMENTS = st.lists(st.binary(min_size=1, max_size=40), max_size=5)


class Counting(io.BytesIO):
    """A file that remembers the largest read that was asked of it."""

    largest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size >= 0
        self.largest = max(self.largest, size)
        return super().read(size)


@given(SEGMENTS, st.booleans())
def test_frames_come_back_with_their_offsets(segments: list[bytes], as_file: bool) -> None:
    data = b"".join(map(frame, segments))
    found = list(read_frames(io.BytesIO(data) if as_file else data, at=7))
    assert [segment for _, segment in found] == segments
    for offset, segment in found:
        assert data[offset - 7 + 4 :].startswith(segment)


@given(SEGMENTS)
def test_every_cut_inside_a_frame_is_told(segments: list[bytes]) -> None:
    data = b"".join(map(frame, segments))
    boundaries = {0, len(data)} | {offset for offset, _ in read_frames(data)}
    for length in set(range(len(data))) - boundaries:
        with pytest.raises(ChainError, match="the file ends"):
            list(read_frames(data[:length]))


def test_frames_before_something_else_end_at_their_mark(run: Run) -> None:
    frames = b"".join(map(frame, run.segments))
    file = io.BytesIO(frames + END + b"rest")
    assert len(list(read_frames(file, terminated=True))) == 3
    assert file.read() == b"rest"
    for cut in (frames, frames + END[:3], b""):
        with pytest.raises(ChainError, match="length is due"):
            list(read_frames(cut, terminated=True))
    with pytest.raises(ChainError, match="of 4294967295 bytes is claimed"):
        list(read_frames(frames + END))


@pytest.mark.parametrize("length", [0, MAX_SEGMENT_BYTES + 1, 2**31, 2**32 - 1])
def test_an_impossible_length_is_refused_before_anything_is_read(length: int) -> None:
    file = Counting(length.to_bytes(4, "big") + bytes(100))
    with pytest.raises(ChainError, match=f"a segment of {length} bytes is claimed") as caught:
        list(read_frames(file))
    assert (caught.value.segment, caught.value.byte) == (0, 0)
    assert file.largest <= 4
    with pytest.raises(SegmentError):
        frame(b"")
    with pytest.raises(SegmentError):
        frame(bytes(MAX_SEGMENT_BYTES + 1))


@given(st.binary(max_size=100))
def test_noise_raises_only_the_declared_error_and_reads_no_more_than_the_cap(noise: bytes) -> None:
    file = Counting(noise)
    try:
        for _ in read_frames(file):
            pass
    except ChainError:
        pass
    assert file.largest <= MAX_SEGMENT_BYTES


def test_the_valid_prefix_after_a_cut_at_every_byte(run: Run, tmp_path: Path) -> None:
    journal = run.write(tmp_path)
    data = journal.read_bytes()
    ends = [0]
    for segment in run.segments:
        ends.append(ends[-1] + len(frame(segment)))
    for count, (start, end) in enumerate(pairwise(ends)):
        for length in range(start, end):
            journal.write_bytes(data[:length])
            assert longest_valid_prefix(journal) == (count, start)
    journal.write_bytes(data)
    assert longest_valid_prefix(journal) == (3, ends[-1])


def test_a_torn_write_that_left_zeros_or_noise_is_no_part_of_the_prefix(
    run: Run, tmp_path: Path
) -> None:
    """A crash can leave a file at its full length with blocks that never reached the disk."""
    journal = run.write(tmp_path)
    data = journal.read_bytes()
    good = len(frame(run.segments[0])) + len(frame(run.segments[1]))
    for tail in (bytes(len(data) - good), b"\xff" * 50, data[good : good + 60] + bytes(100)):
        journal.write_bytes(data[:good] + tail)
        assert longest_valid_prefix(journal) == (2, good)


def test_the_prefix_of_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        longest_valid_prefix(tmp_path / "segments")
