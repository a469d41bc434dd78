from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from esper.tolaria.statistics import PairedGain, paired_gain, spent

losses = st.floats(0.01, 100.0)
pairs = st.lists(st.tuples(losses, losses), min_size=2, max_size=40)
anything = st.floats(allow_nan=True, allow_infinity=True, width=64)


@given(pairs, st.sampled_from([0.001, 0.01, 0.05, 0.25]))
def test_the_interval_is_that_of_the_paired_t_test(
    both: list[tuple[float, float]], level: float
) -> None:
    baseline, candidate = (list(side) for side in zip(*both, strict=True))
    gain = paired_gain(baseline, candidate)
    mean = math.fsum(baseline) / len(baseline)
    if gain.error * mean > 1e-3:
        test = stats.ttest_rel(baseline, candidate, alternative="greater")
        wanted = float(test.confidence_interval(1.0 - level).low)
        assert gain.lower(level) * mean == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert gain.relative == pytest.approx((mean - math.fsum(candidate) / len(candidate)) / mean)
    assert gain.batches == len(both)


def test_a_gain_is_a_fraction_of_the_baseline() -> None:
    gain = paired_gain([2.0, 4.0], [1.0, 2.0])
    assert gain.relative == 0.5
    assert gain.error == pytest.approx(0.5 / 3.0)


def test_equal_losses_gain_exactly_nothing() -> None:
    gain = paired_gain([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    assert (gain.relative, gain.error, gain.lower(0.05)) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nothing_is_won_by_breaking(bad: float) -> None:
    gain = paired_gain([1.0, 1.0], [0.1, bad])
    assert gain.relative == gain.lower(0.05) == -math.inf
    both = paired_gain([bad, 1.0], [bad, 1.0])
    assert both.lower(0.05) == -math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_baseline_is_beaten_by_any_number(bad: float) -> None:
    assert paired_gain([1.0, bad], [5.0, 5.0]).lower(0.01) == math.inf


def test_of_a_loss_that_is_zero_throughout_there_is_no_fraction() -> None:
    assert paired_gain([0.0, 0.0], [-5.0, -5.0]).lower(0.05) == -math.inf


@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_a_loss_below_zero_is_compared_with_its_magnitude(shift: float) -> None:
    """Log-densities: the loss falls from -10 to -12, or from around zero."""
    baseline = [-10.0 + shift, -11.0 + shift, -9.0 + shift]
    better = paired_gain(baseline, [loss - 2.0 for loss in baseline])
    worse = paired_gain(baseline, [loss + 2.0 for loss in baseline])
    assert better.relative == -worse.relative == pytest.approx(2.0 / (10.0 if not shift else 2 / 3))
    assert better.lower(0.05) > 0.0 > worse.lower(0.05)


def test_one_pair_has_no_interval() -> None:
    assert paired_gain([2.0], [1.0]).lower(0.05) == -math.inf
    assert PairedGain(math.inf, 0.0, 1).lower(0.05) == -math.inf


@pytest.mark.parametrize(("one", "two"), [([], []), ([1.0], [1.0, 2.0]), ([1.0, 2.0], [1.0])])
def test_lists_that_are_no_pairs_are_refused(one: list[float], two: list[float]) -> None:
    with pytest.raises(ValueError, match=f"got {len(one)} and {len(two)} losses"):
        paired_gain(one, two)


@given(st.lists(st.tuples(anything, anything), min_size=1, max_size=8))
def test_no_losses_whatever_make_it_fail(both: list[tuple[float, float]]) -> None:
    baseline, candidate = (list(side) for side in zip(*both, strict=True))
    gain = paired_gain(baseline, candidate)
    assert not math.isnan(gain.relative)
    assert not math.isnan(gain.lower(0.05))


def test_repeated_tests_spend_the_budget_and_no_more() -> None:
    shares = [spent(0.05, test) for test in range(1, 20_000)]
    assert all(one > two > 0.0 for one, two in pairwise(shares))
    assert 0.0499 < math.fsum(shares) <= 0.05
    assert shares[0] == pytest.approx(0.05 * 6.0 / math.pi**2)
