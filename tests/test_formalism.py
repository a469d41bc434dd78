"""The formalism names the tests that hold it; they exist, and no invariant is without one."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "formalism.md").read_text()


def test_every_test_that_the_formalism_names_exists() -> None:
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert named
    assert named <= there, f"not there: {sorted(named - there)}"


def test_every_invariant_names_a_test_that_holds_it() -> None:
    invariants = re.split(r"^## (?=I\d+\. )", TEXT, flags=re.MULTILINE)[1:]
    assert len(invariants) >= 7
    for invariant in invariants:
        held = invariant.partition("Held by:")[2]
        assert re.search(r"`test_\w+`", held), invariant.splitlines()[0]
