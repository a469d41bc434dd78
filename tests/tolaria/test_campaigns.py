"""The re-run campaign in short; ``make rerun-campaign`` is the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import rerun_campaign
from support.command import SMALL


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def test_a_run_is_trained_again_to_the_same_bits(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(config), "--runs", "1", "--steps", "300", "--first", "3"]
    assert rerun_campaign.main(arguments) == 0
    *_, row, _, verdict = capsys.readouterr().out.splitlines()
    assert row.startswith("| small | 3 | 300 |")
    assert verdict.startswith("1 of 1 runs over 1 examples")


GROWN = {"final_weights": "a", "steps": 9, "events": 7, "parameters": 5}
AGAIN = {"identical": True, "final_weights": "a", "logged_weights": "a", "checked": 3}


@pytest.mark.parametrize(
    ("again", "told"),
    [
        ({"identical": False, "difference": "step 3: seed 1"}, "NOT identical: step 3: seed 1"),
        ({"final_weights": "b", "logged_weights": "b"}, "NOT identical: the final weights differ"),
        ({"logged_weights": None}, "NOT identical: the final weights differ"),
    ],
)
def test_other_bits_fail_the_campaign(
    again: dict[str, object],
    told: str,
    config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter([GROWN, AGAIN | again, GROWN, AGAIN])
    monkeypatch.setattr(rerun_campaign, "esper", lambda *_: None)
    monkeypatch.setattr(rerun_campaign, "told", lambda *_, **__: next(answers))
    assert rerun_campaign.main(["--config", str(config), "--runs", "2"]) == 1
    out = capsys.readouterr().out
    assert told in out
    assert "1 of 2 runs" in out
