"""The data sets: fixed, disjoint parts, and a random state left alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from esper.tolaria.config import DataSettings
from esper.tolaria.data import NAMES, Splits
from esper.tolaria.data import load as load_chosen

SIZES = {
    "digits": ((797, 250, 350, 400), 64),
    "mnist1d": ((3000, 400, 600, 1000), 40),
    "mnist1d_shuffled": ((3000, 400, 600, 1000), 40),
}


def load(name: str, **chosen: object) -> Splits:
    return load_chosen(DataSettings(name=name, **chosen))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SIZES)
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
    assert load(name).digest() == splits.digest()


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


def test_the_digest_tells_any_two_data_sets_apart() -> None:
    plain = load("digits")
    moved = Splits(plain.probe, plain.train, plain.confirm, plain.test, classes=10)
    digests = {plain.digest(), moved.digest(), load("digits", examples=700).digest()}
    digests |= {load(name).digest() for name in ("mnist1d", "mnist1d_shuffled")}
    assert len(digests) == 5


def test_examples_shorten_the_training_part_alone() -> None:
    whole, short = load("digits"), load("digits", examples=100)
    assert torch.equal(short.train.x, whole.train.x[:100])
    assert len(short.test.y) == len(whole.test.y)
    assert len(load("digits", examples=10_000).train.y) == 797


def test_a_config_can_name_every_data_set() -> None:
    assert set(NAMES) == {*SIZES, "fashion_mnist", "characters"}
