"""Help, bad usage and failures: short, clear, and never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from esper.cli import failures
from esper.cli.main import esper as group
from esper_events.keys import SigningKey
from support.command import ROOT, SMALL, environment, esper
from support.event_runs import blueprint, lattice, make_run, started
from support.histories import KEY

VERBS = sorted(group.commands)


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_a_screen_and_has_an_example(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failures.run(group, [*verb.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= (23 if verb else 40)
    assert max(map(len, lines)) <= 80
    assert any("esper " in line for line in lines[-4:])
    assert any("Example:" in line for line in lines)


def test_the_verbs_are_those_that_the_guide_names() -> None:
    assert VERBS == [
        "audit",
        "blueprints",
        "cancel",
        "daemon",
        "diff",
        "explain",
        "export-log",
        "import-log",
        "keys",
        "logs",
        "prove",
        "repair",
        "replay",
        "rerun",
        "runs",
        "show",
        "status",
        "submit",
        "train",
        "verify",
    ]


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
        ["prove", "."],
        ["prove", ".", "-1"],
        ["verify", ".", "--fingerprint", "ed25519:12"],
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    tmp_path: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert failures.run(group, arguments) == 2
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    assert line.startswith("esper: ")
    verb = f"esper {arguments[0]}" if arguments[0] in VERBS else "esper"
    assert line.endswith(f"; see: {verb} --help")
    assert told.out == ""


def test_without_a_verb_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert failures.run(group, []) == 2
    assert "Train:" in capsys.readouterr().err


def test_an_endless_config_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert failures.run(group, ["train", "/dev/zero"]) == 2
    assert "esper: /dev/zero: got more bytes than" in capsys.readouterr().err


def test_a_run_of_another_workspace_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ESPER_WORKSPACE", str(tmp_path / "another"))
    config = msgspec.structs.replace(started(KEY), config=SMALL)
    run = make_run(KEY, ((config,),))
    run.write(tmp_path / "run")
    assert failures.run(group, ["train", "--resume", str(tmp_path / "run")]) == 1
    told = capsys.readouterr().err
    assert "written under another key than that of the workspace" in told
    assert "set ESPER_WORKSPACE" in told


READERS = {
    "verify": ["verify", "run"],
    "show": ["show", "run"],
    "replay": ["replay", "run"],
    "rerun": ["rerun", "run"],
    "repair": ["repair", "run"],
    "export-log": ["export-log", "run", "out"],
    "prove": ["prove", "run", "0", "--out", "out"],
    "train": ["train", "--resume", "run"],
}


def nothing(run: Path) -> None:
    """No run at all."""


def empty(run: Path) -> None:
    (run / "journal").mkdir()
    (run / "journal" / "segments").touch()


def torn(run: Path) -> None:
    make_run(KEY, ((started(KEY), lattice("fc")),)).write(run)
    segments = run / "journal" / "segments"
    segments.write_bytes(segments.read_bytes()[:-5])


def noise(run: Path) -> None:
    (run / "journal").mkdir()
    (run / "journal" / "segments").write_bytes(bytes(range(256)))


def a_directory(run: Path) -> None:
    (run / "journal" / "segments").mkdir(parents=True)


@pytest.mark.parametrize("verb", READERS)
@pytest.mark.parametrize("spoil", [nothing, empty, torn, noise, a_directory])
def test_a_log_that_is_damaged_or_missing_is_one_line_and_exit_code_1_of_every_verb(
    verb: str,
    spoil: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    spoil(tmp_path / "run")
    assert failures.run(group, READERS[verb]) == failures.VERIFICATION_FAILED
    told = capsys.readouterr()
    if verb == "verify":  # The verdict is what was asked for.
        assert (told.out[:13], told.err) == ("run: FAILED: ", "")
    else:
        assert (told.out, told.err[:20]) == ("", "esper: run: FAILED: ")
    assert len((told.out + told.err).splitlines()) == 1
    assert "Errno" not in told.out + told.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["verify", "show", "replay", "rerun"])
def test_another_key_fails_and_a_bad_key_is_bad_usage(
    verb: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(KEY, ((started(KEY), lattice("fc")),)).write(tmp_path / "run")
    SigningKey.generate().public.save(tmp_path / "other.pub")
    (tmp_path / "noise").write_text("no key")
    assert failures.run(group, [verb, "run", "--key", "other.pub"]) == failures.VERIFICATION_FAILED
    told = capsys.readouterr()
    assert "signed by key" in told.out + told.err
    assert failures.run(group, [verb, "run", "--key", "noise"]) == failures.BAD_USAGE
    assert "--key" in capsys.readouterr().err


def test_a_kept_checkpoint_tells_of_a_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    groups = ((started(KEY), lattice("fc")), (blueprint(),))
    make_run(KEY, groups).write(tmp_path / "run")
    (tmp_path / "kept").write_bytes((tmp_path / "run" / "checkpoint").read_bytes())
    assert failures.run(group, ["verify", "run", "--checkpoint", "kept"]) == 0
    make_run(KEY, groups[:1]).write(tmp_path / "run")
    assert failures.run(group, ["verify", "run"]) == 0
    capsys.readouterr()
    assert failures.run(group, ["verify", "run", "--checkpoint", "kept", "--json"]) == 1
    (message,) = json.loads(capsys.readouterr().out)["messages"]
    assert "the kept checkpoint commits to 3: it was cut or rolled back" in message
    (tmp_path / "kept").write_text("noise")
    assert failures.run(group, ["verify", "run", "--checkpoint", "kept"]) == failures.BAD_USAGE
    assert "--checkpoint" in capsys.readouterr().err


def test_the_table_of_exit_codes_is_that_of_the_code() -> None:
    table = (ROOT / "docs" / "cli.md").read_text()
    codes = [int(line.split("|")[1]) for line in table.splitlines() if line[2:3].isdigit()]
    assert codes == [
        failures.GOOD,
        failures.VERIFICATION_FAILED,
        failures.BAD_USAGE,
        failures.FAILED,
        failures.INTERRUPTED,
    ]


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
