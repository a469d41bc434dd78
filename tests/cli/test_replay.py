"""``esper replay`` on a small run of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from esper.cli import failures
from esper.cli.main import esper as group
from esper.cli.replay import NAMES
from esper.projections.catalogue import PROJECTIONS
from esper_events.events import RunEnded
from esper_events.reader import LogReader
from support.command import SMALL, esper
from support.event_runs import blueprint, lattice, make_run, started
from support.histories import KEY


class Trained:
    """A run in ``directory/run``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "small.toml").write_text(SMALL)
        done = esper(directory, "train", "small.toml", "--run-dir", "run", "--json")
        assert done.returncode == 0, done.stderr
        self.records = list(LogReader(directory / "run").records())

    def replay(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return esper(self.directory, "replay", *arguments)

    def json(self, *arguments: str | Path) -> dict[str, Any]:
        done = self.replay(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


def test_the_names_are_those_of_the_catalogue() -> None:
    assert tuple(PROJECTIONS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_projection_is_told_in_words_with_its_place_and_digest(
    trained: Trained, name: str
) -> None:
    state = PROJECTIONS[name].fold_all(trained.records)
    done = trained.replay("run", "--projection", name)
    assert (done.returncode, done.stderr) == (0, "")
    first, seq, digest, *words = done.stdout.splitlines()
    assert first.startswith(f"run: {name} of log ")
    assert seq == f"  seq: {len(trained.records)}"
    assert digest == f"  digest: {state.digest()}"
    assert words == [f"  {line}" for line in PROJECTIONS[name].words(state)]


def test_the_json_object_is_the_lattice_of_the_run_where_nothing_else_is_asked(
    trained: Trained,
) -> None:
    ended = trained.records[-1].event
    assert isinstance(ended, RunEnded)
    told = trained.json("run")
    assert told["projection"] == "lattice"
    assert told["seq"] == told["records"] == len(trained.records)
    assert told["digest"] == ended.lattice
    assert (told["path"], told["snapshot"]) == ("run", 0)
    assert sorted(told["state"]["seeds"]) == ["0", "1", "2"]
    assert "fossilized" in {seed["stage"] for seed in told["state"]["seeds"].values()}


def test_the_audit_finds_that_the_run_tells_the_truth_of_its_end(trained: Trained) -> None:
    state = trained.json("run", "--projection", "audit")["state"]
    assert state["end"]["lattice_agrees"] is True
    assert state["end"]["outcome"] == "completed"


@pytest.mark.parametrize("to", [0, 1, 20])
def test_to_folds_the_first_events_only(trained: Trained, to: int) -> None:
    for name in NAMES:
        told = trained.json("run", "--projection", name, "--to", str(to))
        assert (told["seq"], told["records"]) == (to, len(trained.records))
        assert told["digest"] == PROJECTIONS[name].fold_all(trained.records[:to]).digest()
        assert told["state"]["records"] == to


def test_an_exported_file_replays_to_the_same(trained: Trained) -> None:
    assert esper(trained.directory, "export-log", "run", "run.esper").returncode == 0
    exported, direct = trained.json("run.esper"), trained.json("run")
    assert exported.pop("path") == "run.esper"
    assert direct.pop("path") == "run"
    assert exported == direct


def test_the_cache_changes_the_way_and_not_the_answer(trained: Trained) -> None:
    plain = trained.json("run", "--projection", "controller")
    assert not (trained.directory / "run" / "snapshots").exists()
    trained.json("run", "--projection", "controller", "--to", "30", "--cache")
    resumed = trained.json("run", "--projection", "controller", "--cache")
    assert resumed.pop("snapshot") == 30
    assert plain.pop("snapshot") == 0
    assert resumed == plain
    told = trained.replay("run", "--projection", "controller", "--cache").stdout
    assert f"from a snapshot at {len(trained.records)}" in told.splitlines()[0]
    assert esper(trained.directory, "verify", "run").returncode == 0


def test_a_bad_snapshot_is_passed_over_with_a_word(trained: Trained) -> None:
    snapshots = trained.directory / "run" / "snapshots"
    snapshots.mkdir(exist_ok=True)
    (snapshots / "audit").write_text("nothing of use")
    done = trained.replay("run", "--projection", "audit", "--cache")
    assert done.returncode == 0
    assert done.stderr == (
        "esper: the snapshot of the audit is ignored: it is damaged: "
        "its digest does not fit its bytes\n"
    )
    again = trained.replay("run", "--projection", "audit", "--cache")
    assert again.stderr == ""
    assert again.stdout.splitlines()[1:] == done.stdout.splitlines()[1:]


class TestRefusals:
    """What is not there, or not whole."""

    @pytest.fixture
    def run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        make_run(KEY, ((started(KEY), lattice("a\x1b[31mb")), (blueprint(),))).write(
            tmp_path / "run"
        )
        monkeypatch.chdir(tmp_path)
        return tmp_path / "run"

    @pytest.mark.parametrize("to", ["4", "99999999999999999999999"])
    def test_a_place_behind_the_end(
        self, run: Path, to: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert failures.run(group, ["replay", "run", "--to", to]) == failures.BAD_USAGE
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err == (f"esper: --to: got {to}, wanted 0 to 3: the log holds no more events\n")

    @pytest.mark.parametrize(
        "arguments",
        [
            ["run", "--to", "-1"],
            ["run", "--to", "x"],
            ["run", "--projection", "emrakul"],
            ["nowhere"],
            [],
        ],
    )
    def test_bad_usage(self, run: Path, arguments: list[str]) -> None:
        assert failures.run(group, ["replay", *arguments]) == failures.BAD_USAGE

    @pytest.mark.parametrize("to", [[], ["--to", "1"]])
    def test_a_damaged_log_is_told_with_its_place_and_nothing_is_drawn_from_it(
        self, run: Path, to: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        journal = run / "journal" / "segments"
        journal.write_bytes(journal.read_bytes()[:-3])
        arguments = ["replay", "run", "--json", *to]
        assert failures.run(group, arguments) == failures.VERIFICATION_FAILED
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("esper: run: FAILED: segment 1, byte ")
        assert len(told.err.splitlines()) == 1

    def test_what_is_no_run(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (run.parent / "empty").mkdir()
        assert failures.run(group, ["replay", "empty"]) == failures.VERIFICATION_FAILED
        assert "empty: FAILED: " in capsys.readouterr().err

    def test_text_from_the_log_does_not_steer_the_terminal(
        self, run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in NAMES:
            assert failures.run(group, ["replay", "run", "--projection", name]) == 0
            assert failures.run(group, ["replay", "run", "--projection", name, "--json"]) == 0
        told = capsys.readouterr().out
        assert "\x1b" not in told
        assert "a [31mb" in told
