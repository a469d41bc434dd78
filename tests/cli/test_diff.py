"""``esper diff`` on logs as their writers leave them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from esper.cli import failures
from esper.cli.main import esper as group
from esper_events.events import PlateauDetected
from esper_events.export import export_run
from esper_events.keys import SigningKey
from support.event_runs import ended, lattice, make_run, started
from support.histories import KEY


def plateau(loss: float) -> PlateauDetected:
    return PlateauDetected(time=1.5, step=9, figures={"loss": loss})


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``a``; ``again`` with another key, time and grouping; ``other``, which parts from it."""
    monkeypatch.chdir(tmp_path)
    key = SigningKey.generate()
    again = msgspec.structs.replace(started(key), time=50.0)
    declared = lattice("a\x1b[31mb")
    make_run(KEY, ((started(KEY), declared), (plateau(0.5),), (ended(),))).write(tmp_path / "a")
    make_run(key, ((again,), (declared, plateau(0.5), ended()))).write(tmp_path / "again")
    reseeded = msgspec.structs.replace(again, seed=8)
    make_run(key, ((reseeded, declared), (plateau(0.25),))).write(tmp_path / "other")
    return tmp_path


def diff(*arguments: str) -> int:
    return failures.run(group, ["diff", *arguments])


def test_the_same_history(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_run(runs / "a", runs / "a.esper")
    assert diff("a", "again") == diff("a", "a.esper", "--exact") == failures.GOOD
    assert capsys.readouterr().out.splitlines() == [
        "a and again: the same history, 4 events",
        "a and a.esper: the same history, 4 events",
    ]
    assert diff("a", "again", "--exact") == failures.VERIFICATION_FAILED


def test_where_they_part_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert diff("a", "other") == failures.VERIFICATION_FAILED
    told = capsys.readouterr().out
    assert told.splitlines() == [
        "a and other: their histories part",
        "they begin differently:",
        "  seed: 7 | 8",
        "events shared up to there: 2; the first that differ:",
        "  a: event 2, step 9: held-out loss has stopped falling [loss 0.5]",
        "  other: event 2, step 9: held-out loss has stopped falling [loss 0.25]",
        "  figures.loss: 0.5 | 0.25",
        "from there on (a | other):",
        "  events: 2 | 1",
        "  end: completed at step 20 | not ended",
        "  loss: nan | -",
    ]


def test_a_history_that_goes_no_further(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(KEY, ((started(KEY), lattice("a\x1b[31mb")),)).write(runs / "short")
    assert diff("short", "a") == failures.VERIFICATION_FAILED
    told = capsys.readouterr().out
    assert "short: goes no further, and has not ended" in told
    assert "a: event 2, step 9" in told


def test_the_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert diff("a", "other", "--json") == failures.VERIFICATION_FAILED
    told = json.loads(capsys.readouterr().out)
    assert (told["same"], told["exact"], told["shared"]) == (False, False, 2)
    assert told["beginnings"] == [{"name": "seed", "a": 7, "b": 8}]
    assert told["fields"] == [{"name": "figures.loss", "a": 0.5, "b": 0.25}]
    assert told["a"]["parted"]["kind"] == "plateau.detected"
    assert (told["b"]["parted"]["index"], told["b"]["parted"]["step"]) == (2, 9)
    assert told["a"]["after"]["figures"] == {"loss": "nan"}
    assert (told["a"]["ended"], told["b"]["ended"]) == (True, False)
    assert told["a"]["key"] == KEY.public.fingerprint


def test_text_from_the_log_does_not_steer_the_terminal(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(KEY, ((started(KEY), lattice("\x1b[2J")),)).write(runs / "steering")
    assert diff("a", "steering") == failures.VERIFICATION_FAILED
    told = capsys.readouterr().out
    assert "slots[0].id:" in told
    assert "\x1b" not in told


def test_a_damaged_log_says_how_far_it_can_be_trusted(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = runs / "other" / "journal" / "segments"
    journal.write_bytes(journal.read_bytes()[:-3])
    assert diff("a", "other") == failures.VERIFICATION_FAILED
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("esper: other: FAILED: segment 1, byte ")
    assert "it can be trusted up to event 1 " in told.err
    (runs / "empty").mkdir()
    assert diff("empty", "a") == failures.VERIFICATION_FAILED
    assert "nothing of it can be trusted" in capsys.readouterr().err


def test_a_key_that_is_not_the_trainers(runs: Path) -> None:
    SigningKey.generate().public.save(runs / "wrong.pub")
    KEY.public.save(runs / "right.pub")
    assert diff("a", "a", "--key", "right.pub") == failures.GOOD
    assert diff("a", "a", "--key", "wrong.pub") == failures.VERIFICATION_FAILED


@pytest.mark.parametrize("arguments", [["a"], [], ["a", "nowhere"], ["a", "a", "a"]])
def test_bad_usage(arguments: list[str]) -> None:
    assert diff(*arguments) == failures.BAD_USAGE
