"""The data sets: fixed, disjoint parts, and a random state left alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from esper.tolaria.data import NAMES, load

SIZES = {
    "digits": ((797, 250, 350, 400), 64),
    "mnist1d": ((3000, 400, 600, 1000), 40),
    "mnist1d_shuffled": ((3000, 400, 600, 1000), 40),
}


@pytest.mark.parametrize("name", NAMES)
def test_parts_are_fixed_typed_and_share_no_row(name: str) -> None:
    splits = load(name)
    sizes, features = SIZES[name]
    parts = (splits.train, splits.probe, splits.confirm, splits.test)
    assert tuple(len(part.y) for part in parts) == sizes
    assert splits.features == features
    for part in parts:
        assert part.x.dtype == torch.float32
        assert part.y.dtype == torch.int64
        assert set(part.y.tolist()) == set(range(splits.classes))
    rows = [row.numpy().tobytes() for part in parts for row in part.x]
    assert len(set(rows)) == len(rows)
    again = load(name)
    assert all(
        torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
        for a, b in zip(parts, (again.train, again.probe, again.confirm, again.test), strict=True)
    )


def test_shuffling_moves_every_signal_alike() -> None:
    plain, shuffled = load("mnist1d"), load("mnist1d_shuffled")
    moved = [
        next(j for j in range(40) if torch.equal(shuffled.train.x[:, i], plain.train.x[:, j]))
        for i in range(40)
    ]
    assert sorted(moved) == list(range(40))
    assert moved != list(range(40))
    assert torch.equal(shuffled.test.x, plain.test.x[:, moved])


def test_loading_leaves_random_state_alone() -> None:
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    expected = random.random(), np.random.random(), torch.rand(1)
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    load("mnist1d")
    assert (random.random(), np.random.random(), torch.rand(1)) == expected


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(ValueError, match="wanted one of digits, mnist1d"):
        load("cifar")
