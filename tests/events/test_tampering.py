"""Exhaustively: no bit, no byte, no segment of a log can be changed without being told where."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import accumulate, permutations
from pathlib import Path

import pytest

from esper_events.export import export_run
from esper_events.framing import END, frame
from esper_events.reader import MAGIC
from esper_events.verify import Report, verify_path
from support.event_runs import Run


@pytest.fixture
def journal(run: Run, tmp_path: Path) -> Path:
    """The journal of a whole run whose directory holds its checkpoint."""
    return run.write(tmp_path / "run")


@pytest.fixture
def export(journal: Path, tmp_path: Path) -> Path:
    """The same run as one file."""
    path = tmp_path / "run.esper"
    export_run(journal.parent.parent, path)
    assert verify_path(path).ok
    return path


def flips(path: Path) -> Iterator[int]:
    """Flip each bit of the file in turn; yields its byte while the bit is wrong."""
    descriptor = os.open(path, os.O_RDWR)
    for at, byte in enumerate(path.read_bytes()):
        for bit in range(8):
            os.pwrite(descriptor, bytes([byte ^ 1 << bit]), at)
            yield at
        os.pwrite(descriptor, bytes([byte]), at)
    os.close(descriptor)


def cuts(path: Path) -> Iterator[int]:
    """Cut the file at each length from one byte less down to none; yields the length."""
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        yield length


def refused(report: Report) -> str:
    assert not report.ok
    assert len(report.messages) == 1
    assert "\n" not in report.message
    return report.message


def starts(run: Run, at: int = 0) -> list[int]:
    """Offset of each segment's frame and of what follows the last."""
    return list(accumulate((len(frame(segment)) for segment in run.segments), initial=at))


def place(ends: list[int], byte: int) -> str:
    """How a report of damage at ``byte`` must begin."""
    return f"segment {sum(end <= byte for end in ends[1:])}, byte "


def test_every_flipped_bit_of_a_journal_is_located(run: Run, journal: Path) -> None:
    directory, ends = journal.parent.parent, starts(run)
    for byte in flips(journal):
        assert refused(verify_path(directory)).startswith(place(ends, byte))
    assert verify_path(directory).ok


def test_every_flipped_bit_of_an_export_is_located(run: Run, export: Path) -> None:
    ends = starts(run, len(MAGIC))
    for byte in flips(export):
        message = refused(verify_path(export))
        if byte < len(MAGIC):
            assert message == "byte 0: neither a run directory nor an exported run"
        elif byte < ends[-1] + len(END):
            assert message.startswith(place(ends, byte))
        else:
            assert "footer" in message or "checkpoint" in message
    assert verify_path(export).ok


def test_every_flipped_bit_of_a_checkpoint_is_told(journal: Path) -> None:
    directory = journal.parent.parent
    for _ in flips(directory / "checkpoint"):
        assert "checkpoint" in refused(verify_path(directory))


def test_every_cut_of_a_journal_is_located(run: Run, journal: Path) -> None:
    directory, ends = journal.parent.parent, starts(run)
    for length in cuts(journal):
        message = refused(verify_path(directory))
        if length == 0:
            assert "the journal is empty" in message
        elif length in ends:
            left = ends.index(length)
            assert f"ends after segment {left - 1}" in message
            assert "commits to 7" in message
        else:
            assert message.startswith(place(ends, length))
            assert "the file ends" in message


def test_every_cut_of_an_export_is_located(run: Run, export: Path) -> None:
    ends = starts(run, len(MAGIC))
    for length in cuts(export):
        message = refused(verify_path(export))
        if length < len(MAGIC):
            assert message.startswith("byte 0")
        elif length < ends[-1] + len(END):
            assert message.startswith(place(ends, length))
        else:
            assert message.startswith(f"byte {ends[-1] + len(END)}: the export's footer")


def test_every_cut_of_a_checkpoint_is_told(journal: Path) -> None:
    for _ in cuts(journal.parent.parent / "checkpoint"):
        assert "checkpoint" in refused(verify_path(journal.parent.parent))


def orders(count: int) -> Iterator[tuple[int, ...]]:
    """Every order of all but one, all, and one doubled, except the right one."""
    right = tuple(range(count))
    for dropped in right:
        yield right[:dropped] + right[dropped + 1 :]
    yield from (order for order in permutations(right) if order != right)
    for doubled in right:
        for at in range(count + 1):
            yield (*right[:at], doubled, *right[at:])


def wrong_at(order: tuple[int, ...]) -> int:
    """Position of the first segment that is not where it belongs."""
    return next((at for at, number in enumerate(order) if at != number), len(order))


@pytest.mark.parametrize("order", list(orders(3)), ids=str)
def test_every_dropped_doubled_or_moved_segment_is_located(
    run: Run, export: Path, journal: Path, order: tuple[int, ...]
) -> None:
    frames = b"".join(frame(run.segments[number]) for number in order)
    footer = export.read_bytes()[starts(run, len(MAGIC))[-1] :]
    journal.write_bytes(frames)
    export.write_bytes(MAGIC + frames + footer)
    for path in (journal.parent.parent, export):
        message = refused(verify_path(path))
        if order == (0, 1):
            assert "ends after segment 1 with 6 events" in message
            assert "commits to 7" in message
        else:
            assert message.startswith(f"segment {wrong_at(order)}, byte ")


def test_bytes_behind_the_end_are_refused(export: Path, journal: Path) -> None:
    for path, target in ((export, export), (journal, journal.parent.parent)):
        with path.open("ab") as file:
            file.write(b"\0")
        refused(verify_path(target))
