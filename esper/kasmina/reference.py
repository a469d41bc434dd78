"""The operators in plain torch and float64: what the compiled ones are tested against.

Written for clarity; nothing in the library calls them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def graft_blend(h: Tensor, delta: Tensor, alpha: Tensor) -> Tensor:
    """``h`` where alpha is 0, otherwise ``h + alpha * delta``; float64, of the shape of ``h``."""
    scale = alpha.double().reshape(())
    return h.double() if scale == 0 else h.double() + scale * delta.double()


def graft_blend_backward(grad: Tensor, delta: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients to ``delta`` and ``alpha``; float64, of the shapes of ``delta`` and ``alpha``."""
    to_delta = alpha.double().reshape(()) * grad.double()
    to_alpha = (grad.double() * delta.double()).sum().reshape(alpha.shape)
    return to_delta, to_alpha


def graft_project(
    h: Tensor, hidden: Tensor, up: Tensor, bias: Tensor | None, alpha: Tensor
) -> Tensor:
    """``h + alpha * (hidden @ up^T + bias)`` for one seed or K candidates; float64, differentiable.

    ``h`` is ``[..., width]``, ``hidden`` ``[..., rank]`` or ``[..., K * rank]``.
    """
    weights = up.double()
    if up.dim() == 2:
        delta = hidden.double() @ weights.T
    else:
        units = hidden.double().reshape(*hidden.shape[:-1], len(up), up.shape[-1])
        delta = torch.einsum("...kr,kwr->k...w", units, weights)
    if bias is not None:
        ones = [1] * (h.dim() - 1)
        delta = delta + bias.double().reshape(*bias.shape[:-1], *ones, bias.shape[-1])
    blended = h.double() + alpha.double().reshape(()) * delta
    return h.double().expand_as(delta) if not alpha.any() else blended


def slot_stats(x: Tensor, axis: int = -1) -> Tensor:
    """Mean, population variance, largest absolute value, zero fraction, non-finite count.

    Float64 of shape ``[5, x.shape[axis]]``; the first three over the finite elements of each
    feature and NaN where it has none, the fourth NaN where it has no elements.
    """
    if x.shape[axis] == 0:
        return x.new_empty((5, 0), dtype=torch.float64)
    features = x.double().movedim(axis, 0).reshape(x.shape[axis], x.numel() // x.shape[axis])
    return torch.stack([_column(values) for values in features], dim=1)


def _column(values: Tensor) -> Tensor:
    finite = values[values.isfinite()]
    mean = variance = largest = zeros = float("nan")
    if len(finite):
        mean = float(finite.mean())
        variance = float((finite - mean).square().mean())
        largest = float(finite.abs().max())
    if len(values):
        zeros = float((values == 0).double().mean())
    non_finite = float(len(values) - len(finite))
    return values.new_tensor([mean, variance, largest, zeros, non_finite])
