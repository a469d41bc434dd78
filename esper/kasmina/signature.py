"""What a seed is given and must give back: the geometry of a slot, wherever it stands."""

from __future__ import annotations

from dataclasses import dataclass

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
