"""Examples in memory, and the four parts that they are dealt out to."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SPLIT_SEED = 20260
"""Of the permutation that deals the examples of every data set out."""


class Part(NamedTuple):
    """Examples ``x`` [rows, ...] and their classes ``y``, int64: one for each row, or one for
    each position of a row.

    Numbers are float32 ([rows, features], images [rows, channels, height, width]), tokens int64
    ([rows, positions]).
    """

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
        """Numbers in one example."""
        return math.prod(self.train.x.shape[1:])

    def shortened(self, rows: int) -> Splits:
        """The same with at most ``rows`` examples to train on, the first ones."""
        return replace(self, train=Part(self.train.x[:rows], self.train.y[:rows]))

    def digest(self) -> str:
        """SHA-256 of types, shapes and bytes of all parts, in hex."""
        hashed = hashlib.sha256()
        for part in (self.train, self.probe, self.confirm, self.test):
            for tensor in part:
                hashed.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
                hashed.update(tensor.contiguous().numpy().data)
        return hashed.hexdigest()


def part(x: NDArray[Any], y: NDArray[np.int64]) -> Part:
    """A part of arrays, in memory of its own order."""
    return Part(
        torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(np.ascontiguousarray(y))
    )


def dealt(rows: int) -> NDArray[np.int64]:
    """The fixed permutation of so many examples."""
    order: NDArray[np.int64] = np.random.RandomState(SPLIT_SEED).permutation(rows)
    return order
