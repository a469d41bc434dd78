"""``esper blueprints``: what ships, what a run knew, and what is wrong with what was asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from esper.blueprints.library import GATED_MLP, LOW_RANK
from esper.cli import failures
from esper.cli.main import esper as group
from esper_events.events import TransitionApplied
from esper_events.stages import Stage
from support.event_runs import BLUEPRINT, applied, blueprint, decided, lattice, make_run, started
from support.histories import KEY


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = failures.run(group, ["blueprints", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_what_ships_is_listed_and_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    code, listed, _ = call(capsys, "list")
    assert code == 0
    assert f"gated_mlp       output  5      {GATED_MLP.id[:12]}" in listed.splitlines()
    for name in ("gated_mlp", GATED_MLP.id[:8]):
        code, drawn, _ = call(capsys, "show", name)
        assert code == 0
        assert drawn.splitlines()[0] == f"gated_mlp  reads the output  {GATED_MLP.id}"
        assert "╰─●  multiply" in drawn
    _, drawn, _ = call(capsys, "show", "widen", "--shape", "32", "--in-shape", "40")
    assert drawn.splitlines()[-1] == "  7,040 parameters in all"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Knows one blueprint, of which one seed was tried and culled, and another as it is written."""
    body = LOW_RANK.canonical()
    told = (
        decided(1, Stage.DORMANT, Stage.GERMINATED),
        applied(1),
        decided(2, Stage.GERMINATED, Stage.CULLED),
        TransitionApplied(time=3.0, decision=2, step=12, seed_weights=""),
    )
    begun = (started(KEY), lattice("fc"), blueprint(), blueprint(body, LOW_RANK.id))
    make_run(KEY, (begun, told)).write(tmp_path / "run")
    return tmp_path / "run"


def test_those_of_a_run_tell_how_they_fared(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, listed, _ = call(capsys, "list", "--run", str(run))
    assert code == 0
    rows = [line.split() for line in listed.splitlines()]
    assert rows[0] == ["name", "tried", "live", "kept", "culled", "id"]
    assert ["b", "1", "0", "0", "1", BLUEPRINT[:12]] in rows
    assert ["b", "0", "0", "0", "0", LOW_RANK.id[:12]] in rows


def test_what_is_no_blueprint_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code, words in (
        (["show", "nothing"], 2, "wanted one of: attention"),
        (["show", ""], 2, "wanted one of"),
        (["show", "widen", "--in-shape", "3"], 2, "--in-shape needs --shape"),
        (["show", "widen", "--shape", "3y"], 2, "wanted a width"),
        (["show", "widen", "--shape", "0"], 2, "does not fit such a slot"),
        (["show", "widen", "--shape", "9" * 30], 2, "does not fit such a slot"),
        (["show", "squeeze_excite", "--shape", "64"], 2, "does not fit such a slot"),
        (["show", "b", "--run", str(run)], 1, "FAILED"),
        (["list", "--run", str(run.parent)], 1, "holds no run"),
    ):
        got, out, err = call(capsys, *arguments)
        assert (got, out) == (code, ""), arguments
        assert words in err
        assert "Traceback" not in err
