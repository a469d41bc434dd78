"""A run as one file, made without the trainer's key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from esper_events.checkpoint import Checkpoint, write_checkpoint
from esper_events.errors import ChainError, ExportError
from esper_events.export import Exported, export_run
from esper_events.framing import END, LENGTH, frame
from esper_events.keys import SigningKey
from esper_events.reader import MAGIC, LogReader
from esper_events.verify import verify_path
from support.event_runs import Run


def test_a_whole_run_is_exported_byte_for_byte(run: Run, tmp_path: Path) -> None:
    journal = run.write(tmp_path / "run")
    file = tmp_path / "run.esper"
    exported = export_run(tmp_path / "run", file)
    assert exported == Exported(events=7, segments=3, ended=True, whole=True)
    footer = END + LENGTH.pack(len(run.note)) + run.note
    assert file.read_bytes() == MAGIC + journal.read_bytes() + footer
    one, two = verify_path(file, run.key.public), verify_path(tmp_path / "run", run.key.public)
    assert one == two
    assert next(LogReader(file).records()).event == run.groups[0][0]


def test_what_the_checkpoint_does_not_cover_is_left_out(
    running: Run, make: Callable[..., Run], tmp_path: Path
) -> None:
    running.write(tmp_path / "run")
    write_checkpoint(tmp_path / "run", make(running.groups[0]).note)
    exported = export_run(tmp_path / "run", tmp_path / "run.esper")
    assert (exported.events, exported.segments, exported.whole) == (3, 1, False)
    report = verify_path(tmp_path / "run.esper")
    assert report.ok
    assert any("has not ended" in note for note in report.messages)


def test_a_run_without_checkpoint_is_not_exported(running: Run, tmp_path: Path) -> None:
    running.write(tmp_path / "run", checkpoint=False)
    with pytest.raises(ExportError, match="has no checkpoint"):
        export_run(tmp_path / "run", tmp_path / "run.esper")
    assert not (tmp_path / "run.esper").exists()


def test_a_file_is_never_overwritten(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path / "run")
    file = tmp_path / "run.esper"
    file.write_text("mine")
    with pytest.raises(ExportError, match="exists already"):
        export_run(tmp_path / "run", file)
    assert file.read_text() == "mine"


def test_a_damaged_run_is_not_exported_and_leaves_nothing_behind(run: Run, tmp_path: Path) -> None:
    directory, file = tmp_path / "run", tmp_path / "run.esper"
    journal = run.write(directory)
    good = journal.read_bytes()
    root = run.verifier().tree.root()
    notes = (
        Checkpoint("run-1", 3, root).sign(run.key),
        Checkpoint("run-1", 7, bytes(32)).sign(run.key),
        Checkpoint("run-2", 7, root).sign(run.key),
        Checkpoint("run-1", 7, root).sign(SigningKey.generate()),
        b"noise",
    )
    for note in notes:
        write_checkpoint(directory, note)
        with pytest.raises(ChainError):
            export_run(directory, file)
    write_checkpoint(directory, run.note)
    for data in (b"", good[:-1], good[:50] + b"\xff" + good[51:], frame(run.segments[0])):
        journal.write_bytes(data)
        with pytest.raises(ChainError):
            export_run(directory, file)
    journal.unlink()
    with pytest.raises(ChainError, match="holds no run"):
        export_run(directory, file)
    assert list(tmp_path.iterdir()) == [directory]


def test_an_export_whose_footer_commits_to_less_is_refused(
    run: Run, make: Callable[..., Run], tmp_path: Path
) -> None:
    note = make(*run.groups[:2]).note
    frames = b"".join(map(frame, run.segments))
    file = tmp_path / "run.esper"
    file.write_bytes(MAGIC + frames + END + LENGTH.pack(len(note)) + note)
    assert "holds 7 events, but its footer commits to 6" in verify_path(file).message
