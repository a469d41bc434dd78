"""The table of objectives in short: one small comparison, and the lines that it becomes."""

from __future__ import annotations

import pytest

from benchmarks import objectives
from benchmarks.objectives import OBJECTIVES, UNTRAINED, Costs, Found, Place, compare, table

PLACE = Place("digits", "hidden = [4, 4]", "layer1..layer2", "widen", warmup=3)
COST = Costs(
    plain_ms=0.5,
    steps={"shadow": 2.0, "reconstruction": 1.0, "negative_gradient": 4.0, "next_layer": 2.0},
    crowd={"shadow": 8.0, "reconstruction": 4.0, "negative_gradient": 16.0, "next_layer": 8.0},
)


def test_seeds_of_each_objective_are_compared_in_the_same_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(objectives, "TRIAL", 6)
    monkeypatch.setattr(objectives, "BLEND", 2)
    monkeypatch.setattr(objectives, "TOGETHER", 4)
    lengths = [COST.in_equal_time(objective) for objective in OBJECTIVES]
    assert lengths == [6, 12, 3, 6]
    found = compare(PLACE, COST, 0)
    assert list(found) == [*OBJECTIVES, UNTRAINED]
    assert all(result.equal_steps and result.grafted for result in found.values())
    assert found["shadow"].equal_time == found["shadow"].equal_steps
    assert found["reconstruction"].equal_time != found["reconstruction"].equal_steps
    assert found[UNTRAINED].equal_time is None
    gains = {found[objective].equal_steps for objective in OBJECTIVES}
    assert len(gains) == len(OBJECTIVES)
    assert compare(PLACE, COST, 0) == found


def test_a_place_becomes_a_table_with_differences_paired_by_seed() -> None:
    rows = [
        {
            name: Found((0.1 * n, 1.0), (0.2, 1.0), (0.3 * n + 0.1 * (name == "shadow"), 2.0))
            for name in (*OBJECTIVES, UNTRAINED)
        }
        for n in (1, 2)
    ]
    lines = list(table(PLACE, COST, rows))
    assert lines[0] == "digits, widen in layer1..layer2 (2 seeds, a plain step 0.50 ms)"
    assert lines[4] == (
        "| shadow | 2.0 | 8.0 | +15.0 ± 63.5 % | +20.0 ± 0.0 % | +55.0 ± 190.6 % | +2.0 ± 0.0 |"
    )
    assert lines[-2].startswith(
        "grafted, minus shadow, paired by seed: reconstruction -10.0 ± 0.0 %; negative_gradient"
    )
