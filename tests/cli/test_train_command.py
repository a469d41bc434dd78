"""``esper train`` and what is done with its log, end to end."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from support.command import SMALL, command, environment, esper, heed_signals, in_shell


class Trained:
    """One small run made with ``--json``, shared by the tests of this file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "small.toml").write_text(SMALL)
        self.done = esper(directory, "train", "small.toml", "--run-dir", "run", "--json")

    def esper(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return esper(self.directory, *arguments)

    def in_shell(
        self, tail: str, *arguments: str | Path, **more: str
    ) -> subprocess.CompletedProcess[str]:
        return in_shell(self.directory, tail, *arguments, **more)

    @property
    def figures(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.done.stdout.splitlines()[-1])
        return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


def test_train_ends_well_with_one_json_object(trained: Trained) -> None:
    assert trained.done.returncode == 0, trained.done.stderr
    assert len(trained.done.stdout.splitlines()) == 1
    figures = trained.figures
    for name in ("test_accuracy", "control_accuracy", "static_accuracy"):
        assert 0.0 <= figures[name] <= 100.0
    assert figures["run_dir"] == "run"
    assert figures["control_parameters"] == 64 * 4 + 4 + 40 + 10
    assert figures["parameters"] == figures["static_parameters"] > figures["control_parameters"]
    for name in ("head", "final_weights"):
        assert len(bytes.fromhex(figures[name])) == 32
    assert figures["steps"] == 420


def test_progress_and_transitions_are_told_meanwhile(trained: Trained) -> None:
    lines = trained.done.stderr.splitlines()
    for part in ("grown", "host alone", "grown shape from the start"):
        assert f"== {part}: 420 steps" in lines
    for change in ("dormant -> germinated", "training -> grafting", "evaluating -> fossilized"):
        assert any(change in line for line in lines), change


def test_verify_agrees_with_train(trained: Trained) -> None:
    done = trained.esper("verify", "run", "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["ok"] is True
    for name in ("events", "segments", "head"):
        assert report[name] == trained.figures[name]
    pinned = trained.esper("verify", "run", "--key", "run/trainer.pub")
    assert pinned.returncode == 0
    assert trained.figures["head"] in pinned.stdout


def test_show_tells_the_story_and_every_event(trained: Trained) -> None:
    story = trained.esper("show", "run")
    assert story.returncode == 0
    assert "fossilized" in story.stdout
    assert story.stdout.splitlines()[-1].split()[2:4] == ["run", "completed"]
    everything = trained.esper("show", "run", "--all")
    assert len(everything.stdout.splitlines()) == trained.figures["events"]


def test_a_reader_that_leaves_early_is_no_error(trained: Trained) -> None:
    counted = "| head -1; echo ${PIPESTATUS[0]}"
    done = trained.in_shell(counted, "show", "run", "--all", PYTHONUNBUFFERED="1")
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 2
    assert done.stdout.splitlines()[1] == "0"


@pytest.mark.parametrize("verb", ["verify", "show", "replay"])
@pytest.mark.parametrize(
    ("output", "code", "told"),
    [(">&-", 0, ""), ("> /dev/full", 3, "esper: there is no room to write: the output\n")],
)
def test_an_output_that_is_closed_or_full_says_nothing_of_the_log(
    trained: Trained, verb: str, output: str, code: int, told: str
) -> None:
    done = trained.in_shell(output, verb, "run")
    assert (done.returncode, done.stderr) == (code, told)


def test_training_goes_on_when_its_reader_leaves(trained: Trained) -> None:
    counted = "| head -1; echo ${PIPESTATUS[0]}"
    done = trained.in_shell(counted, "train", "small.toml", "--run-dir", "unread")
    assert done.stderr == ""
    assert done.stdout.splitlines()[1:] == ["0"]
    assert "run completed" in trained.esper("show", "unread").stdout


def test_an_exported_log_is_verified_and_a_flipped_bit_is_found(trained: Trained) -> None:
    done = trained.esper("export-log", "run", "run.esper")
    assert done.returncode == 0, done.stderr
    assert trained.esper("verify", "run.esper").returncode == 0
    imported = trained.esper("import-log", "run.esper", "imported")
    assert imported.returncode == 0, imported.stderr
    assert "next: esper verify imported" in imported.stdout
    assert (
        trained.esper("verify", "imported").stdout.split(":")[1:]
        == (trained.esper("verify", "run").stdout.split(":")[1:])
    )
    over = trained.esper("import-log", "run.esper", "run")
    assert (over.returncode, "exists already" in over.stderr) == (2, True)
    again = trained.esper("export-log", "run", "run.esper")
    assert again.returncode == 2
    assert "exists already" in again.stderr
    data = bytearray((trained.directory / "run.esper").read_bytes())
    data[len(data) // 2] ^= 0x10
    (trained.directory / "flipped.esper").write_bytes(data)
    unread = trained.in_shell("| true; echo $PIPESTATUS", "verify", "flipped.esper")
    assert (unread.stdout, unread.stderr) == ("1\n", "")
    flipped = trained.esper("verify", "flipped.esper", "--json")
    assert flipped.returncode == 1
    report = json.loads(flipped.stdout)
    assert report["ok"] is False
    assert "segment" in report["messages"][0]
    shown = trained.esper("show", "flipped.esper")
    assert shown.returncode == 1
    assert shown.stdout.startswith(" ")
    assert "FAILED" in shown.stderr


def test_the_controls_can_be_left_out(trained: Trained) -> None:
    done = trained.esper("train", "small.toml", "--run-dir", "alone", "--no-controls", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert [line for line in done.stderr.splitlines() if line[:2] == "=="] == [
        "== grown: 420 steps"
    ]
    assert figures["final_weights"] == trained.figures["final_weights"]
    assert "control_accuracy" not in figures


def test_repair_finds_the_copy_of_an_undisturbed_run_whole(trained: Trained) -> None:
    done = trained.esper("repair", "run")
    assert done.returncode == 0, done.stderr
    assert "holds all" in done.stdout


def test_a_second_run_in_one_directory_is_refused_at_once(trained: Trained) -> None:
    done = trained.esper("train", "small.toml", "--run-dir", "run")
    assert done.returncode == 2
    assert done.stderr == "esper: run holds a run already: choose another --run-dir\n"


def test_the_seed_decides_the_model(trained: Trained) -> None:
    again = trained.esper("train", "small.toml", "--json", "--seed", "0")
    figures = json.loads(again.stdout.splitlines()[-1])
    assert figures["run_dir"].startswith("runs/small-")
    for name in ("final_weights", "test_accuracy", "static_accuracy", "parameters"):
        assert figures[name] == trained.figures[name]


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGHUP, 129, "terminated")],
)
def test_an_interrupted_run_closes_its_log(
    tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    (tmp_path / "long.toml").write_text(SMALL.replace("steps = 420", "steps = 1_000_000"))
    with subprocess.Popen(
        command("train", "long.toml", "--run-dir", "run"),
        cwd=tmp_path,
        env=environment(tmp_path / "workspace"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_signals,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if "germinated" in line:
                break
        process.send_signal(number)
        process.stdout.read()
        told = process.stderr.read().splitlines()
        assert process.wait(30) == code
    assert told[0].endswith("next: esper show run")
    assert [line for line in told[1:] if line] == [f"esper: {word}"]
    verified = esper(tmp_path, "verify", "run", "--json")
    assert verified.returncode == 0
    assert json.loads(verified.stdout)["ended"] is True
    assert "run interrupted" in esper(tmp_path, "show", "run").stdout


def test_on_a_terminal_the_view_is_live_and_ctrl_c_ends_it_well(tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text(SMALL.replace("steps = 420", "steps = 1_000_000"))
    process, terminal = pty.fork()
    if process == 0:
        heed_signals()
        os.chdir(tmp_path)
        arguments = command("train", "long.toml", "--run-dir", "run")
        os.execve(arguments[0], arguments, {**environment(tmp_path / "workspace"), "TERM": "xterm"})
    seen, interrupted, deadline = b"", False, time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not interrupted and b"blueprint" in seen and b"training" in seen:
            os.write(terminal, b"\x03")
            interrupted = True
    _, status = os.waitpid(process, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130
    assert b"Traceback" not in seen
    assert b"blueprint" in seen
    assert b"\x1b[?25h" in seen  # the cursor is shown again
    assert esper(tmp_path, "verify", "run").returncode == 0

    assert esper(tmp_path, "verify", "run").returncode == 0
