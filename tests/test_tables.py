"""The README's tables in short: one small run, and the figures that rows of it become."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from benchmarks import table
from benchmarks.table import Row, comparison, interval, keep, run
from support.command import SMALL

ROW = Row(
    seed=0,
    data="digits",
    steps=100,
    host_accuracy=80.0,
    grown_accuracy=90.0,
    static_accuracy=91.0,
    host_loss=math.log(2.0),
    grown_loss=0.5 * math.log(2.0),
    static_loss=0.25 * math.log(2.0),
    host_parameters=1000,
    grown_parameters=3000,
    shadow_passes=40,
    fork_steps=20,
    grafts=2,
    fossils=1,
    seconds={"grown": 3.0, "host alone": 1.0},
)


def test_a_run_becomes_a_row_with_what_growth_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPER_WORKSPACE", "")  # set by the run, and put back afterwards
    (tmp_path / "small.toml").write_text(SMALL)
    row = run(tmp_path / "small.toml", tmp_path, 1)
    assert (row.seed, row.data, row.steps) == (1, "digits", 420)
    assert (row.grafts, row.fossils) == (1, 1)
    assert row.fork_steps >= 30 + 20 + 100
    assert row.shadow_passes >= 60
    assert row.grown_parameters > row.host_parameters
    assert list(row.seconds) == ["grown", "host alone", "grown shape from the start"]


def test_rows_become_means_with_intervals_paired_by_seed() -> None:
    rows = [ROW, dataclasses.replace(ROW, seed=1, host_accuracy=82.0, grown_accuracy=94.0)]
    assert table.table(rows)[2:] == [
        "| 0 | 80.00 | 90.00 | 91.00 | 1,000 to 3,000 |",
        "| 1 | 82.00 | 94.00 | 91.00 | 1,000 to 3,000 |",
        "| mean | 81.00 ± 12.71 | 92.00 ± 25.41 | 91.00 ± 0.00 | mean 3,000 |",
    ]
    lines = comparison(rows)
    assert lines[0] == "grown minus the host alone: +11.00 ± 12.71 points"
    assert "40 shadow passes and 20 steps of forks beside 100 steps; 4 grafts, 2 of" in lines[2]
    assert lines[3] == "wall time, mean of the seeds: grown 3 s; host alone 1 s"


def test_text_counts_in_bits() -> None:
    row = dataclasses.replace(ROW, data="characters")
    assert table.table([row])[2].startswith("| 0 | 1.000 | 0.500 | 0.250 |")
    assert comparison([row])[1].endswith("+0.250 ± nan bits per character")


def test_an_interval_is_students() -> None:
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.302653 / math.sqrt(3.0), rel=1e-6))


def test_what_was_measured_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    (tmp_path / "small.toml").write_text(SMALL)
    path = keep(tmp_path / "small.toml", [ROW])
    kept = json.loads(path.read_text())
    assert kept["config"] == SMALL
    assert Row(**kept["rows"][0]) == ROW
