"""A checkpoint on disk: whole or not there, the same bytes for the same state, never torn."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from esper.tolaria.checkpoint import file
from esper.tolaria.checkpoint.file import CheckpointError
from esper.tolaria.checkpoint.values import Packer

STATE = {"weights": {"w": torch.arange(6.0).reshape(2, 3)}, "loss": float("inf"), "step": 7}


def written(directory: Path, step: int = 7, state: object = STATE) -> tuple[Path, str]:
    packer = Packer()
    digest = file.write(directory, step, packer.pack(state, ""), packer.tensors)
    return file.path_of(directory, step), digest


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path, digest = written(tmp_path / "checkpoints")
    found = file.read(path, digest)
    assert torch.equal(found["weights"]["w"], STATE["weights"]["w"])  # type: ignore[index]
    assert (found["loss"], found["step"]) == (float("inf"), 7)
    assert [p.name for p in path.parent.iterdir()] == ["000000007.safetensors"]


def test_equal_states_are_equal_files_and_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    one, first = written(tmp_path / "one")
    two, second = written(tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()
    assert first == second == hashlib.sha256(one.read_bytes()).hexdigest()
    assert written(tmp_path / "one") == (one, first)  # A file of the same step is replaced.


def test_the_file_is_safetensors_and_json_and_has_the_users_permissions(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    with safe_open(path, framework="pt") as opened:
        assert list(opened.keys()) == ["/weights/w"]
        described = json.loads(opened.metadata()["esper.checkpoint"])
    assert described["format"] == 3
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flip, "it is not the file that was written"),
        (lambda p: p.write_bytes(p.read_bytes()[:-3]), "it is not the file that was written"),
        (lambda p: p.write_bytes(b""), "it is not the file that was written"),
        (lambda p: p.unlink(), "it is not there"),
        (lambda p: (p.unlink(), p.mkdir()), r"it cannot be read \(Is a directory\)"),
    ],
)
def test_a_file_that_is_not_the_one_written_is_refused(
    tmp_path: Path, damage: Any, told: str
) -> None:
    path, digest = written(tmp_path)
    damage(path)
    with pytest.raises(CheckpointError, match=told):
        file.read(path, digest)


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({}, "it holds no checkpoint"),
        ({"esper.checkpoint": "{"}, "it holds no checkpoint"),
        ({"esper.checkpoint": "[]"}, "it holds no checkpoint"),
        ({"esper.checkpoint": '{"format":9,"state":1}'}, "it has format 9, wanted 3"),
        ({"esper.checkpoint": '{"format":3,"state":{"tensor":"x"}}'}, "it holds no checkpoint"),
    ],
)
def test_a_file_of_something_else_is_refused(
    tmp_path: Path, metadata: dict[str, str], told: str
) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata)
    with pytest.raises(CheckpointError, match=told):
        file.read(path, hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, digest = written(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path, state={"other": 1})
    assert file.read(path, digest)["step"] == 7
    assert list(tmp_path.iterdir()) == [path]


def test_the_newest_stay(tmp_path: Path) -> None:
    for step in (5, 1000, 30):
        written(tmp_path, step)
    (tmp_path / "drafts").mkdir()
    (tmp_path / "drafts" / ".tmpDNpZvZ").touch()
    file.prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "000000030.safetensors",
        "000001000.safetensors",
    ]
