from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from esper.telemetry.moments import SKETCH, Moments, Spread


def data(rows: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inputs, generator=generator, dtype=torch.float64)
    mixing = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, outputs, generator=generator, dtype=torch.float64)
    weights = torch.randn(inputs, outputs, generator=generator, dtype=torch.float64)
    x = x @ mixing + 3.0
    return x, x @ weights * 0.2 + noise


def residual(x: Tensor, g: Tensor) -> float:
    """Of least squares, unbiased, as a fraction of all that was wanted."""
    solution = torch.linalg.lstsq(x, g).solution
    left = (g - x @ solution).square().sum() / (1.0 - x.shape[1] / x.shape[0])
    return float(left / g.square().sum())


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bottleneck_is_the_residual_of_least_squares(
    constant: bool, dtype: torch.dtype
) -> None:
    x, g = data(500, 12, 5)
    moments = Moments(12, 5, constant=constant, dtype=dtype)
    for part_x, part_g in zip(x.split(130), g.split(130), strict=True):
        moments.add(part_x, part_g)
    reads = torch.cat([x, torch.ones(500, 1, dtype=torch.float64)], 1) if constant else x
    found = moments.bottleneck()
    assert moments.rows == 500.0
    assert math.isclose(found.wanted, float(g.square().sum() / 500), rel_tol=1e-5)
    assert math.isclose(found.unreachable, residual(reads, g), rel_tol=2e-3)


def test_what_the_weights_can_give_is_no_bottleneck() -> None:
    x, _ = data(400, 8, 3)
    moments = Moments(8, 3, constant=True, dtype=torch.float64)
    moments.add(x, x @ torch.ones(8, 3, dtype=torch.float64) + 2.0)
    assert moments.bottleneck().unreachable < 1e-9


def test_chance_does_not_look_like_reach() -> None:
    generator = torch.Generator().manual_seed(0)
    moments = Moments(60, 40, constant=True)
    moments.add(
        torch.randn(100, 60, generator=generator), torch.randn(100, 40, generator=generator)
    )
    assert 0.9 < moments.bottleneck().unreachable <= 1.0


def test_too_few_rows_tell_nothing_and_dead_inputs_count_for_none() -> None:
    x, g = data(40, 30, 2)
    few = Moments(30, 2, constant=True)
    few.add(x[:20], g[:20])
    assert math.isnan(few.bottleneck().unreachable)
    assert math.isnan(Moments(3, 2, constant=True).bottleneck().unreachable)
    x[:, 10:] = 0.0
    dead = Moments(30, 2, constant=True, dtype=torch.float64)
    dead.add(x[:20], g[:20])
    alive = torch.cat([x[:20, :10], torch.ones(20, 1, dtype=torch.float64)], 1)
    assert math.isclose(dead.bottleneck().unreachable, min(1.0, residual(alive, g[:20])))


def test_what_is_not_finite_makes_no_figure() -> None:
    x, g = data(50, 4, 2)
    x[3, 1] = math.nan
    moments = Moments(4, 2, constant=True)
    moments.add(x, g)
    assert math.isnan(moments.bottleneck().unreachable)
    assert math.isnan(moments.effective_rank())


def test_old_rows_fade() -> None:
    x, g = data(300, 4, 2)
    fading = Moments(4, 2, constant=True, dtype=torch.float64, memory=0.5)
    for part in range(3):
        rows = slice(100 * part, 100 * part + 100)
        fading.add(x[rows], g[rows])
    assert math.isclose(fading.rows, 175.0**2 / 131.25)
    weights = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64).repeat_interleave(100)
    wanted = float((weights[:, None] * g.square()).sum() / weights.sum())
    assert math.isclose(fading.bottleneck().wanted, wanted, rel_tol=1e-12)


def effective_rank(x: Tensor) -> float:
    values = torch.linalg.eigvalsh(torch.cov(x.T))
    return float(values.sum() ** 2 / values.square().sum())


@pytest.mark.parametrize("features", [3, 64])
def test_the_effective_rank_is_that_of_the_covariance(features: int) -> None:
    x, _ = data(300, features, 1)
    moments, spread = Moments(features, 1, constant=True), Spread(features)
    moments.add(x, x[:, :1])
    spread.add(x)
    assert math.isclose(moments.effective_rank(), effective_rank(x), rel_tol=1e-4)
    assert math.isclose(spread.effective_rank(), effective_rank(x), rel_tol=1e-4)


@pytest.mark.parametrize("rank", [2, 40, 400])
def test_a_sketch_comes_near_the_effective_rank_of_wide_layers(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(3000, rank, generator=generator) @ torch.randn(rank, 600, generator=generator)
    spread = Spread(600)
    spread.add(x)
    assert x.shape[1] > SKETCH
    assert math.isclose(spread.effective_rank(), effective_rank(x.double()), rel_tol=0.15)


def test_features_that_do_not_vary_have_no_rank() -> None:
    spread = Spread(5)
    spread.add(torch.ones(10, 5))
    assert spread.effective_rank() == 0.0
    assert math.isnan(Spread(5).effective_rank())
