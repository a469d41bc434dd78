"""``esper train --resume``: a killed run goes on as if it had never been."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.command import SMALL, command, environment, esper

KEPT = SMALL.replace("[data]", "checkpoint_every = 10\n[data]")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A run that nothing interrupted."""
    directory = tmp_path_factory.mktemp("resume")
    (directory / "small.toml").write_text(KEPT)
    done = esper(directory, "train", "small.toml", "--run-dir", "whole", "--no-controls", "--json")
    assert done.returncode == 0, done.stderr
    return directory, json.loads(done.stdout.splitlines()[-1])


def cut(directory: Path, name: str, size: int) -> Path:
    """The whole run as it would lie there had it been killed after ``size`` bytes."""
    run = directory / name
    shutil.copytree(directory / "whole", run)
    (run / "checkpoint").unlink()
    segments = run / "journal" / "segments"
    segments.write_bytes(segments.read_bytes()[:size])
    return run


def resumed(directory: Path, name: str, first: dict[str, object]) -> int:
    """Resume the run ``name``, hold it to the whole one, and tell from which step it went on."""
    done = esper(directory, "train", "--resume", name, "--no-controls", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["final_weights"] == first["final_weights"]
    step = told["resumed_at"]
    words = f"goes on from the checkpoint of step {step}" if step else "goes on from its start"
    assert words in done.stderr
    verified = esper(directory, "verify", name, "--json")
    assert json.loads(verified.stdout)["ended"] is True
    again = json.loads(esper(directory, "rerun", name, "--json").stdout.splitlines()[-1])
    assert again["identical"] is True
    return int(step)


@pytest.mark.parametrize(("part", "wanted"), [(0.4, 0), (0.97, 390)])
def test_a_run_cut_anywhere_ends_as_the_whole_one(
    whole: tuple[Path, dict[str, object]], part: float, wanted: int
) -> None:
    directory, first = whole
    size = (directory / "whole" / "journal" / "segments").stat().st_size
    run = cut(directory, f"cut-{part}", int(part * size))
    assert resumed(directory, run.name, first) >= wanted


def test_a_run_goes_on_under_the_key_that_its_workspace_signs_with_since(
    whole: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    directory, first = whole
    size = (directory / "whole" / "journal" / "segments").stat().st_size
    cut(directory, "left", int(0.97 * size)).rename(tmp_path / "left")
    shutil.copytree(directory / "workspace" / "keys", tmp_path / "workspace" / "keys")
    assert esper(tmp_path, "keys", "rotate").returncode == 0
    assert resumed(tmp_path, "left", first) >= 390
    told = esper(tmp_path, "show", "--all", "left").stdout
    assert told.count("trainer's key rotated to ed25519:") == 1


def killed(directory: Path, name: str, moment: Callable[[Path, str], bool]) -> None:
    """Start a run, and kill it when ``moment`` has come, asked of its directory and its story."""
    story = directory / f"{name}.txt"
    with (
        story.open("w") as told,
        subprocess.Popen(
            command("train", "small.toml", "--run-dir", name),
            cwd=directory,
            env=environment(directory / "workspace"),
            stdout=told,
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        while not moment(directory / name, story.read_text()):
            assert process.poll() is None, story.read_text()
        process.send_signal(signal.SIGKILL)


def is_grafting(_: Path, story: str) -> bool:
    return "grafting" in story


def is_writing(run: Path, _: str) -> bool:
    """Whether a checkpoint lies there half-written, behind one that the log tells of."""
    journal = run / "journal" / "segments"
    told = journal.exists() and b"checkpoint.written" in journal.read_bytes()
    return told and any((run / "checkpoints").glob("drafts/*"))


@pytest.mark.parametrize("moment", [is_grafting, is_writing])
def test_a_killed_process_is_resumed(
    whole: tuple[Path, dict[str, object]], moment: Callable[[Path, str], bool]
) -> None:
    directory, first = whole
    killed(directory, moment.__name__, moment)
    assert resumed(directory, moment.__name__, first) >= 10
    left = [path.suffix for path in (directory / moment.__name__ / "checkpoints").iterdir()]
    assert left == [".safetensors"] * 2


def test_what_cannot_be_resumed_is_told(whole: tuple[Path, dict[str, object]]) -> None:
    directory, _ = whole
    (directory / "empty").mkdir()
    for arguments, code, words in (
        (["--resume", "whole"], 2, "has ended (completed): there is nothing to resume"),
        (["--resume", "empty"], 1, "holds no run, journal/segments is missing"),
        (["small.toml", "--resume", "whole"], 2, "from the run itself"),
        ([], 2, "wanted CONFIG.toml, or --resume DIR"),
    ):
        done = esper(directory, "train", *arguments)
        assert done.returncode == code, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
