"""``esper rerun``: the same bits, or one line that says where they part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.command import SMALL, esper


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    directory = tmp_path_factory.mktemp("rerun")
    (directory / "small.toml").write_text(SMALL + "record_every = 50\n")
    done = esper(directory, "train", "small.toml", "--run-dir", "run", "--seed", "1", "--json")
    assert done.returncode == 0, done.stderr
    return directory, json.loads(done.stdout.splitlines()[-1])


def test_a_rerun_is_identical(trained: tuple[Path, dict[str, object]]) -> None:
    directory, first = trained
    done = esper(directory, "rerun", "run", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["identical"] is True
    assert told["final_weights"] == first["final_weights"]
    assert told["difference"] is None
    assert told["checked"] > 5


def test_an_exported_run_is_trained_again_up_to_a_step(
    trained: tuple[Path, dict[str, object]],
) -> None:
    directory, _ = trained
    assert esper(directory, "export-log", "run", "run.esper").returncode == 0
    done = esper(directory, "rerun", "run.esper", "--to", "100")
    assert done.returncode == 0, done.stderr
    assert "identical" in done.stdout
    assert "step 100: weights " in done.stdout


def test_what_cannot_be_trained_again_is_told(trained: tuple[Path, dict[str, object]]) -> None:
    directory, _ = trained
    done = esper(directory, "rerun", "run", "--to", "100000")
    assert done.returncode == 2
    assert "got step 100000, wanted one from 1 to 420" in done.stderr
    segments = directory / "run" / "journal" / "segments"
    whole = segments.read_bytes()
    segments.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    try:
        done = esper(directory, "rerun", "run")
    finally:
        segments.write_bytes(whole)
    assert done.returncode == 1
    assert done.stderr.startswith("esper: run: FAILED: segment ")
    assert len(done.stderr.splitlines()) == 1
