"""``esper submit``, ``daemon``, ``status``, ``logs`` and ``cancel`` on the workspace's server."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.cli import failures
from esper.cli.main import esper
from esper.log.workspace import Workspace
from support.command import SMALL
from support.daemons import Site, site


class Told:
    """What ``esper`` says: standard output where all is well, else the error; ``aside`` is what
    it said on standard error last."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.aside = ""
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        self._capsys.readouterr()
        ended = failures.run(esper, list(arguments))
        captured = self._capsys.readouterr()
        self.aside = captured.err
        assert ended == code, captured.err
        assert "Traceback" not in captured.err
        return captured.err if code else captured.out


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(SMALL.replace("[data]", "checkpoint_every = 10\n[data]"))
    return tmp_path


@pytest.fixture
def told(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Told]:
    """``esper`` typed in that directory; the server stays between two commands."""
    monkeypatch.chdir(here)
    monkeypatch.setenv("ESPER_WORKSPACE", str(here / "workspace"))

    server = Workspace(here / "workspace").attach_server()
    server.endpoint()
    yield Told(capsys)
    server.close()


def test_jobs_wait_for_a_daemon(told: Told) -> None:
    assert told("status") == "no jobs\n"
    job = told("submit", "small.toml", "--max-memory", "2G", "--seed", "7").strip()
    assert job.startswith("small-")
    assert "no daemon waits for work" in told.aside
    again = told("submit", "--retry", job, "--max-time", "60").strip()
    assert told("cancel", job, "--reason", "a typo") == f"{job}: cancelled\n"
    table = told("status").splitlines()
    assert [line.split()[:2] for line in table] == [
        ["JOB", "STATE"],
        [job, "cancelled"],
        [again, "waiting"],
    ]
    assert table[1].endswith("a typo")
    assert told("logs", job) == "job cancelled: a typo\n"
    for arguments, code, words in (
        (["cancel", job], 2, f"job {job} is cancelled already"),
        (["cancel", "nothing"], 2, "no job 'nothing' on this server"),
        (["logs", again, "--stderr"], 2, "was not trained in this workspace"),
        (["submit"], 2, "wanted CONFIG.toml, or --retry JOB"),
        (["submit", "missing.toml"], 2, "missing.toml: no such file"),
        (["submit", "small.toml", "--max-memory", "much"], 2, "wanted a size such as 1500M"),
        (["status", "--nats", "nats://127.0.0.1:1"], 3, "cannot connect"),
    ):
        assert words in told(*arguments, code=code)


def test_a_run_that_lives_in_a_journal_goes_on_where_that_lies(here: Path, told: Told) -> None:
    """With its daemon killed in the middle, from submission to its verified end."""
    job = told("submit", "small.toml", "--ack", "journal").strip()
    with site(here) as there:
        there.start()
        there.wait_for_step(job, 0)
        assert "a daemon is at work" in told("daemon", code=3)
        end(there, signal.SIGKILL)
        there.start()
        there.wait(job, lambda state: state.state == "ended")
        end(there, signal.SIGINT)
    row = json.loads(told("status", job, "--json"))["jobs"][0]
    assert (row["state"], row["outcome"], row["epoch"]) == ("ended", "completed", 1)
    assert (row["step"], row["steps"]) == (420, 420)
    story = told("logs", job, "-f").splitlines()
    assert "run completed" in story[-1]
    assert any("fossilized" in line for line in story)
    run = f"workspace/jobs/{job}/run"
    assert json.loads(told("verify", run, "--json"))["ended"] is True
    assert json.loads(told("rerun", run, "--json").splitlines()[-1])["identical"]


def end(there: Site, number: int) -> None:
    """End the daemon by a signal, and hear how."""
    there.signal(number)
    assert there.ended() == (-number if number == signal.SIGKILL else 0)
