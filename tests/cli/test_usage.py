"""Help, bad usage and failures: short, clear, and never a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from esper.cli import failures
from esper.cli.main import esper as group
from support.command import ROOT, SMALL, environment, esper

VERBS = sorted(group.commands)


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_a_screen_and_has_an_example(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failures.run(group, [*verb.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 23
    assert max(map(len, lines)) <= 80
    assert any("esper " in line for line in lines[-4:])
    assert any("Example:" in line for line in lines)


def test_the_verbs_are_those_that_the_guide_names() -> None:
    assert VERBS == ["export-log", "repair", "replay", "rerun", "show", "train", "verify"]


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["verify", "--json", "nothing"], ["show", "nothing"], ["train", "bad.toml"]],
)
def test_nothing_slow_is_loaded_before_it_is_needed(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "bad.toml").write_text("[run]\nsteps = 0\n")
    code = (
        "import sys\nfrom esper.cli import failures\nfrom esper.cli.main import esper\n"
        f"failures.run(esper, {arguments!r})\n"
        "print(sorted({'torch', 'sklearn', 'nats', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "missing.toml"], "esper: missing.toml: no such file"),
        (["train", "bad.toml"], "esper: bad.toml: grow: unknown key, did you mean 'growth'?"),
        (["train", "good.toml", "--seed", "-1"], "esper: run.seed: got -1, wanted a whole number"),
        (["train", "good.toml", "--nats", "here"], "esper: --nats: got 'here', wanted an address"),
        (["train", "good.toml", "--run-dir", "bad.toml/x"], "esper: --run-dir bad.toml/x: cannot"),
        (["train", "factory.toml"], "esper: model.factory: importing 'not_there' failed"),
        (["export-log", ".", "out"], "esper: . has no checkpoint"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, arguments: list[str], line: str
) -> None:
    (tmp_path / "good.toml").write_text(SMALL)
    (tmp_path / "bad.toml").write_text(SMALL + "[grow]\n")
    (tmp_path / "factory.toml").write_text(
        SMALL.replace("hidden = [4]", 'factory = "not_there:make"')
    )
    done = esper(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(line)
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["grow"],
        ["train"],
        ["train", "a", "b"],
        ["verify", "missing"],
        ["verify", ".", "--key", "x"],
        ["show", "--colour"],
        ["train", "x.toml", "--seed", "many"],
    ],
)
def test_bad_usage_is_exit_code_2(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert failures.run(group, arguments) == 2


def test_a_directory_that_holds_no_run_fails_verification(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failures.run(group, ["verify", str(tmp_path)]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert failures.run(group, ["show", str(tmp_path)]) == 1


def test_a_bad_key_is_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_text("no key")
    assert failures.run(group, ["verify", str(tmp_path), "--key", str(tmp_path / "key")]) == 2
    assert "--key" in capsys.readouterr().err


def test_repair_of_what_is_no_run_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failures.run(group, ["repair", str(tmp_path)]) == failures.FAILED
    assert "holds no journal" in capsys.readouterr().err


class TestUnexpected:
    """An error that nobody foresaw."""

    @pytest.fixture(autouse=True)
    def _broken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import esper.tolaria.config

        def broken(path: Path) -> None:
            raise RuntimeError("first line\nsecond \x1b[31m line")

        monkeypatch.setattr(esper.tolaria.config, "read", broken)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def test_it_is_one_line_that_names_the_report(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert failures.run(group, ["train", "x.toml"]) == failures.FAILED
        (report,) = tmp_path.glob("esper-report-*.txt")
        assert capsys.readouterr().err == (
            f"esper: unexpected error, RuntimeError: first line (full report in {report})\n"
        )
        assert "Traceback" in report.read_text()
        assert report.stat().st_mode & 0o077 == 0

    def test_the_traceback_is_shown_to_who_asks(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ESPER_DEBUG", "1")
        assert failures.run(group, ["train", "x.toml"]) == failures.FAILED
        assert "Traceback" in capsys.readouterr().err


def test_the_examples_are_good_configs() -> None:
    from esper.tolaria.config import read

    examples = sorted((ROOT / "examples").glob("*.toml"))
    assert examples
    for path in examples:
        read(path)
