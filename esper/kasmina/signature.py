"""Places where seeds can live, and what a seed is given there and must give back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Signature:
    """What a slot hands to a seed and wants back.

    Shapes are per example, without the batch dimension; ``in_axis`` and ``out_axis`` name the
    feature dimension in them, counted from 0: for a ``Linear`` on ``[batch, 64]`` the shape is
    ``(64,)`` and the axis 0. ``dtype`` and ``device`` are those of the seed's parameters.
    """

    in_shape: tuple[int, ...]
    in_axis: int
    out_shape: tuple[int, ...]
    out_axis: int
    dtype: torch.dtype = torch.float32
    device: torch.device = _CPU


@dataclass(frozen=True, kw_only=True)
class Slot(Signature):
    """A place where a seed can live: from the input of ``start`` to the output of ``end``.

    ``source`` tells what the seed reads: the host's activation at ``end``, or the input of
    ``start``. ``batch_axis`` is where the host has the batch (1 where it runs sequence-first);
    ``outputs`` the length of the tuple that ``end`` returns and that starts with the activation, 0
    where it returns the activation itself.
    """

    id: str
    source: Literal["output", "span"]
    start: str
    end: str
    batch_axis: int = 0
    outputs: int = 0
