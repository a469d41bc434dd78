"""``esper train --resume``: a killed run goes on as if it had never been."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support.command import SMALL, command, environment, esper

KILLS = 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A run that nothing interrupted."""
    directory = tmp_path_factory.mktemp("resume")
    (directory / "small.toml").write_text(SMALL)
    done = esper(directory, "train", "small.toml", "--run-dir", "whole", "--json")
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


@pytest.mark.parametrize("kill", range(KILLS))
def test_a_run_cut_anywhere_ends_as_the_whole_one(
    whole: tuple[Path, dict[str, object]], kill: int
) -> None:
    directory, first = whole
    size = (directory / "whole" / "journal" / "segments").stat().st_size
    run = cut(directory, f"cut-{kill}", random.Random(kill).randrange(2000, size - 10))
    done = esper(directory, "train", "--resume", run.name, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["final_weights"] == first["final_weights"]
    assert told["run"] == first["run"]
    verified = esper(directory, "verify", run.name, "--json")
    assert json.loads(verified.stdout)["ended"] is True
    again = json.loads(esper(directory, "rerun", run.name, "--json").stdout.splitlines()[-1])
    assert again["identical"] is True


def test_a_killed_process_is_resumed(whole: tuple[Path, dict[str, object]]) -> None:
    directory, first = whole
    with subprocess.Popen(
        command("train", "small.toml", "--run-dir", "killed"),
        cwd=directory,
        env=environment(directory / "workspace"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "grafting" in line:
                break
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    done = esper(directory, "train", "--resume", "killed", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["final_weights"] == first["final_weights"]


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
