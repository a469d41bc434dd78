"""A server of the user's own that goes away in the middle of a run, and comes back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command import SMALL, command, environment, esper
from support.log_runs import UserServer, user_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[UserServer]:
    directory = tmp_path / "server"
    directory.mkdir()
    yield from user_server(directory)


def test_the_run_ends_well_and_repair_completes_the_copy(
    tmp_path: Path, server: UserServer
) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    with subprocess.Popen(
        command("train", "small.toml", "--run-dir", "run", "--nats", server.url, "--json"),
        cwd=tmp_path,
        env={**environment(tmp_path / "workspace"), "ESPER_NATS_MONITOR": server.monitor},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stderr:
            if "germinated" in line:
                break
        server.kill()
        told = process.stderr.read()
        figures = json.loads(process.stdout.read().splitlines()[-1])
        assert process.wait(60) == 0
    assert "fossilized" in told
    assert figures["behind"] > 0
    assert figures["parameters"] > figures["control_parameters"]
    assert esper(tmp_path, "verify", "run").returncode == 0

    away = esper(tmp_path, "repair", "run", "--nats", server.url)
    assert away.returncode == 3
    assert len(away.stderr.splitlines()) == 1

    server.start()
    repaired = esper(tmp_path, "repair", "run", "--nats", server.url)
    assert repaired.returncode == 0, repaired.stderr
    assert "segments sent" in repaired.stdout
    again = esper(tmp_path, "repair", "run", "--nats", server.url)
    assert f"holds all {figures['segments']}, equal to the journal's" in again.stdout
