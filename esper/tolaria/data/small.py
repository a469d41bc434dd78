"""The data sets that come with a package: digits, and MNIST-1D in two orders."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from esper.tolaria.data.parts import Splits, dealt, part

_SHUFFLE_SEED = 1


def digits() -> Splits:
    """1,797 images of 8 x 8, pixels scaled to 0..1: 797 / 250 / 350 / 400 rows."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = np.asarray(bunch.data, dtype=np.float32) / 16.0
    y = np.asarray(bunch.target, dtype=np.int64)
    train, probe, confirm, test = (
        part(x[rows], y[rows]) for rows in np.split(dealt(len(y)), [797, 1047, 1397])
    )
    return Splits(train, probe, confirm, test, classes=10)


def mnist1d(columns: NDArray[np.int64] | None = None) -> Splits:
    """5,000 signals of 40 samples, standardised: 3,000 / 400 / 600 rows and the 1,000 test rows
    of the original; ``columns`` permutes the samples of every signal alike."""
    from mnist1d.data import get_dataset_args, make_dataset

    with _random_state_kept():
        made = make_dataset(get_dataset_args())
    x, x_test = (np.asarray(made[key], dtype=np.float32) for key in ("x", "x_test"))
    y, y_test = (np.asarray(made[key], dtype=np.int64) for key in ("y", "y_test"))
    if columns is not None:
        x, x_test = x[:, columns], x_test[:, columns]
    train, probe, confirm = (
        part(x[rows], y[rows]) for rows in np.split(dealt(len(y)), [3000, 3400])
    )
    return Splits(train, probe, confirm, part(x_test, y_test), classes=10)


def mnist1d_shuffled() -> Splits:
    """The same signals with their samples in one fixed, meaningless order."""
    return mnist1d(np.random.RandomState(_SHUFFLE_SEED).permutation(40))


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """mnist1d seeds the global generators of Python and NumPy to make its data."""
    python, legacy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
