"""An exported file becomes the run directory that it was made of, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from esper_events.errors import ChainError, ImportRefusedError
from esper_events.export import export_run
from esper_events.importing import Imported, import_run
from esper_events.keys import SigningKey
from esper_events.verify import verify_path
from support.event_runs import Run


@pytest.fixture
def export(run: Run, tmp_path: Path) -> Path:
    run.write(tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "run.esper")
    return tmp_path / "run.esper"


def files(directory: Path) -> dict[str, bytes]:
    found = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def test_a_run_comes_back_byte_for_byte(export: Path, run: Run, tmp_path: Path) -> None:
    for name in ("there", "in/a/folder"):
        assert import_run(export, tmp_path / name) == Imported("run-1", 7, 3, ended=True)
        assert files(tmp_path / name) == files(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    import_run(export, tmp_path / "empty", run.key.public)
    assert verify_path(tmp_path / "empty", run.key.public).ok
    export_run(tmp_path / "there", tmp_path / "again.esper")
    assert (tmp_path / "again.esper").read_bytes() == export.read_bytes()


def test_nothing_is_overwritten(export: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for name in ("file", "full", "run"):
        before = files(tmp_path)
        with pytest.raises(ImportRefusedError, match="exists already"):
            import_run(export, tmp_path / name)
        assert files(tmp_path) == before


def test_where_it_cannot_be_written_is_told(export: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ImportRefusedError, match="cannot write"):
        import_run(export, tmp_path / "file" / "run")


def test_no_flipped_byte_and_no_cut_leaves_anything_behind(export: Path, tmp_path: Path) -> None:
    good = export.read_bytes()
    spoilt = tmp_path / "spoilt.esper"
    flipped = (good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(0, len(good), 37))
    for data in (*flipped, *(good[:size] for size in range(0, len(good), 97)), good + b"x"):
        spoilt.write_bytes(data)
        with pytest.raises(ChainError):
            import_run(spoilt, tmp_path / "never")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"run", "run.esper", "spoilt.esper"}


def test_a_log_of_another_key_is_refused(export: Path, tmp_path: Path) -> None:
    with pytest.raises(ChainError, match="wanted"):
        import_run(export, tmp_path / "never", SigningKey.generate().public)
    assert not (tmp_path / "never").exists()
