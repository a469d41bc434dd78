"""What `make model-check` says of what Spin printed; Spin itself runs there, not here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import model_check
from model_check import MODELS, MUTANTS, CheckError, Verdict

THROUGH = """
(Spin Version 6.5.2 -- 6 December 2019)
State-vector 124 byte, depth reached 160, errors: 0
   874332 states, stored
  2497078 transitions (= stored+matched)
  153.185\ttotal actual memory usage
pan: elapsed time 4.59 seconds
"""
BROKEN = """pan:1: assertion violated (stored>=promised) (at depth 66)
Warning: Search not completed
State-vector 124 byte, depth reached 91, errors: 1
      218 states, stored
   33.000\ttotal actual memory usage
pan: elapsed time 0 seconds
"""


def test_the_figures_of_a_search_are_read() -> None:
    assert model_check._read(THROUGH) == Verdict("", 874332, 160, 153.185, 4.59)
    assert model_check._read(BROKEN).fault == "assertion violated (stored>=promised)"


def test_a_search_that_ran_out_of_memory_is_no_verdict() -> None:
    with pytest.raises(CheckError, match="cut short"):
        model_check._read(f"Warning: Search not completed\n{THROUGH}")


def test_every_rule_that_can_be_taken_out_of_a_model_is_taken_out() -> None:
    """A macro that changes a model and is no mutant would never be seen to matter."""
    included = {"journal": ["history", "server"], "takeover": ["history", "server"]}
    for model, parts in included.items():
        text = "".join((MODELS / f"{name}.pml").read_text() for name in (model, *parts))
        bounds = set(model_check.BOUNDS_OF_MUTANTS)
        switches = set(re.findall(r"#ifn?def (\w+)", text)) - bounds
        switches -= set(re.findall(r"^#define (\w+)$", text, re.MULTILINE))
        assert switches == {mutant for name, mutant in MUTANTS if name == model}


@pytest.mark.parametrize(("sound", "found", "code"), [(0, 0, 0), (1, 0, 1), (0, 1, 1)])
def test_a_fault_in_a_model_and_a_mutant_that_passes_both_fail(
    sound: int, found: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(
        _: str, model: str, bounds: object, mutant: str = "", cycles: bool = False
    ) -> Verdict:
        broken = sound if not mutant else 1 - found
        return Verdict("assertion violated" * broken, 1, 1, 1.0, 0.0)

    monkeypatch.setattr(model_check, "find_spin", lambda: "spin")
    monkeypatch.setattr(model_check, "search", search)
    assert model_check.main() == code


def test_no_spin_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(model_check, "CACHE", tmp_path / "build" / "spin")
    assert model_check.main() == 2
    assert "spin is not here" in capsys.readouterr().err
