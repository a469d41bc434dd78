"""With the disk full ``esper train`` stops so that it can go on, and says what to do."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from support.command import SMALL, command, environment, esper
from support.small_disk import on_small_disk

CONFIG = SMALL.replace("steps = 420", "steps = 420\ncheckpoint_every = {every}")
LS = ["sh", "-c", "cd disk/run && ls checkpoints; find . -name '*drafts*' -o -name '*.part'"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The final weights of a run that had room."""
    place = tmp_path_factory.mktemp("whole")
    (place / "small.toml").write_text(CONFIG.format(every=40))
    done = esper(place, "train", "small.toml", "--run-dir", "run", "--no-controls", "--json")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["final_weights"])


def filled(
    tmp_path: Path, every: int, disk: int, largest: int
) -> list[subprocess.CompletedProcess[str]]:
    (tmp_path / "small.toml").write_text(CONFIG.format(every=every))
    (tmp_path / "disk").mkdir()
    train = command("train", "small.toml", "--run-dir", "disk/run", "--no-controls")
    resume = command("train", "--resume", "disk/run", "--no-controls", "--json")
    return on_small_disk(
        tmp_path / "disk",
        environment(tmp_path / "workspace"),
        disk=disk,
        largest=largest,
        full=train,
        then=[LS, command("verify", "disk/run"), resume],
    )


@pytest.mark.parametrize(
    ("every", "disk", "largest", "what"),
    [(40, 120, 40, "checkpoints/"), (1000, 64, 12, "")],
    ids=["a checkpoint", "the log"],
)
def test_a_run_stops_on_a_full_disk_and_goes_on_to_the_same_bits(
    tmp_path: Path, whole: str, every: int, disk: int, largest: int, what: str
) -> None:
    train, listed, verified, resumed = filled(tmp_path, every, disk, largest)
    assert train.returncode == 3, train.stderr
    *_, last = train.stderr.splitlines()
    assert last.startswith("esper: there is no room for ")
    assert what in last
    assert last.endswith(
        "; the run has stopped; free space on the disk of disk/run, then: "
        "esper train --resume disk/run"
    )
    assert "run completed" not in train.stdout + train.stderr
    assert listed.returncode == 0, listed.stderr
    files = listed.stdout.split()
    assert all(name.endswith(".safetensors") for name in files), files
    assert bool(files) == bool(what)
    assert verified.returncode == 0, verified.stderr + verified.stdout
    assert resumed.returncode == 0, resumed.stderr
    told = json.loads(resumed.stdout)
    assert told["final_weights"] == whole
    assert (told["resumed_at"] > 0) == bool(what)
