"""``esper-verify``, and that it needs nothing of what made the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import esper_events
from esper_events.command import main
from esper_events.keys import SigningKey
from support.event_runs import Run


def esper_verify(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def directory(run: Run, tmp_path: Path) -> Path:
    run.write(tmp_path / "run")
    run.key.public.save(tmp_path / "run" / "trainer.pub")
    return tmp_path / "run"


def test_a_whole_run_exits_0(run: Run, directory: Path) -> None:
    result = esper_verify(directory)
    assert result.exit_code == 0
    assert ": ok: whole: 7 events in 3 segments" in result.output
    assert "note: the key was taken from the log itself" in result.output
    assert run.verifier().head.hex() in result.output
    pinned = esper_verify(directory, "--key", directory / "trainer.pub")
    assert pinned.exit_code == 0
    assert "taken from the log" not in pinned.output


def test_a_damaged_run_exits_1_with_one_line(directory: Path) -> None:
    with (directory / "journal" / "segments").open("r+b") as file:
        file.truncate(100)
    result = esper_verify(directory)
    assert result.exit_code == 1
    line = f"{directory}: FAILED: segment 0, byte 0: the file ends inside a segment: 96 of "
    assert result.output.startswith(line)
    assert result.output.count("\n") == 1


def test_a_verdict_that_finds_no_room_exits_3_in_one_line(directory: Path) -> None:
    code = "from esper_events.command import main; main()"
    environment = {"PYTHONPATH": str(Path(esper_events.__file__).parents[1])}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, directory],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    told = "esper-verify: cannot write the verdict: No space left on device\n"
    assert (done.returncode, done.stderr) == (3, told)


def test_another_key_exits_1(directory: Path, tmp_path: Path) -> None:
    SigningKey.generate().public.save(tmp_path / "other.pub")
    result = esper_verify(directory, "--key", tmp_path / "other.pub")
    assert result.exit_code == 1
    assert "signed by key" in result.output


def test_a_kept_checkpoint_tells_of_a_cut_that_the_run_itself_hides(
    run: Run, running: Run, directory: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes((directory / "checkpoint").read_bytes())
    whole = esper_verify(directory, "--checkpoint", kept)
    assert whole.exit_code == 0
    assert "the first 7 as the kept checkpoint has them" in whole.output
    assert "note:" not in whole.output
    running.write(directory)
    assert esper_verify(directory).exit_code == 0
    cut = esper_verify(directory, "--checkpoint", kept)
    assert cut.exit_code == 1
    assert "but the kept checkpoint commits to 7: it was cut or rolled back" in cut.output


def test_a_path_does_not_steer_the_terminal(directory: Path) -> None:
    odd = directory.rename(directory.with_name("a\x1b[31mb"))
    result = esper_verify(odd)
    assert result.exit_code == 0
    assert "\x1b" not in result.output


def test_json_is_one_object(run: Run, directory: Path) -> None:
    found = json.loads(esper_verify(directory, "--json").output)
    assert (found["ok"], found["events"], found["segments"]) == (True, 7, 3)
    assert found["head"] == run.verifier().head.hex()
    (directory / "journal" / "segments").write_bytes(b"")
    result = esper_verify(directory, "--json")
    assert result.exit_code == 1
    assert json.loads(result.output)["ok"] is False


def test_bad_usage_exits_2(directory: Path, tmp_path: Path) -> None:
    noise = tmp_path / "noise.pub"
    noise.write_text("noise")
    for arguments in (
        (),
        (tmp_path / "missing",),
        (directory, "--key", tmp_path / "missing"),
        (directory, "--key", noise),
        (directory, "--checkpoint", tmp_path / "missing"),
        (directory, "--checkpoint", noise),
        (directory, "--fingerprint", "noise"),
        (directory, "--nonsense"),
    ):
        result = esper_verify(*arguments)
        assert result.exit_code == 2
        assert "Traceback" not in result.output


def test_the_version_needs_no_installed_distribution() -> None:
    assert esper_verify("--version").output == f"esper-verify, version {esper_events.__version__}\n"


def test_the_help_fits_a_screen_and_has_an_example() -> None:
    result = esper_verify("--help")
    assert result.exit_code == 0
    assert len(result.output.splitlines()) <= 24
    assert "Example:" in result.output


def test_the_auditors_package_loads_no_part_of_the_trainer() -> None:
    code = """
import pkgutil, sys, esper_events
for module in pkgutil.iter_modules(esper_events.__path__):
    if module.name != "__main__":
        __import__(f"esper_events.{module.name}")
loaded = {name.partition(".")[0] for name in sys.modules}
print(sorted(loaded & {"torch", "nats", "esper", "numpy"}))
"""
    place = str(Path(esper_events.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": place},
    )
    assert done.stdout == "[]\n"
