"""The data sets that Esper can train on without a download, split once and for all.

Four parts, so that no gate is judged on examples that chose its candidate: the host learns from
``train``; plateau detection, tournament and shadow gate look at ``probe``; the fork gate alone
sees ``confirm``; ``test`` is only reported. The split depends on nothing but the data set.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SPLIT_SEED = 20260
_SHUFFLE_SEED = 1


class Part(NamedTuple):
    """Examples: ``x`` float32 [rows, features], ``y`` int64 [rows], the class of each."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Splits:
    """The four parts of a data set."""

    train: Part
    probe: Part
    confirm: Part
    test: Part
    classes: int

    @property
    def features(self) -> int:
        """Width of one example."""
        return self.train.x.shape[1]


def load(name: str) -> Splits:
    """The data set of that name (``NAMES``); leaves all random state as it was.

    Raises ``ValueError`` for another name.
    """
    if name not in _LOADERS:
        raise ValueError(f"data set: got {name!r}, wanted one of {', '.join(NAMES)}")
    with _random_state_kept():
        return _LOADERS[name]()


def _digits() -> Splits:
    """1,797 images of 8 x 8, pixels scaled to 0..1: 797 / 250 / 350 / 400 rows."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = np.asarray(bunch.data, dtype=np.float32) / 16.0
    y = np.asarray(bunch.target, dtype=np.int64)
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(y))
    train, probe, confirm, test = (
        _part(x[rows], y[rows]) for rows in np.split(order, [797, 1047, 1397])
    )
    return Splits(train, probe, confirm, test, classes=10)


def _mnist1d(columns: NDArray[np.int64] | None = None) -> Splits:
    """5,000 signals of 40 samples, standardised: 3,000 / 400 / 600 rows and the 1,000 test rows
    of the original; ``columns`` permutes the samples of every signal alike."""
    from mnist1d.data import get_dataset_args, make_dataset

    made = make_dataset(get_dataset_args())
    x, x_test = (np.asarray(made[key], dtype=np.float32) for key in ("x", "x_test"))
    y, y_test = (np.asarray(made[key], dtype=np.int64) for key in ("y", "y_test"))
    if columns is not None:
        x, x_test = x[:, columns], x_test[:, columns]
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(y))
    train, probe, confirm = (_part(x[rows], y[rows]) for rows in np.split(order, [3000, 3400]))
    return Splits(train, probe, confirm, _part(x_test, y_test), classes=10)


def _mnist1d_shuffled() -> Splits:
    """The same signals with their samples in one fixed, meaningless order."""
    return _mnist1d(np.random.RandomState(_SHUFFLE_SEED).permutation(40))


def _part(x: NDArray[np.float32], y: NDArray[np.int64]) -> Part:
    return Part(
        torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(np.ascontiguousarray(y))
    )


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """mnist1d seeds the global generators of Python and NumPy to make its data."""
    python, legacy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


_LOADERS: dict[str, Callable[[], Splits]] = {
    "digits": _digits,
    "mnist1d": _mnist1d,
    "mnist1d_shuffled": _mnist1d_shuffled,
}
NAMES: tuple[str, ...] = tuple(_LOADERS)
