"""Hypothesis strategies for tensors of every layout that a host can produce."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@st.composite
def shapes(draw: st.DrawFn, *, least_dims: int = 0) -> tuple[int, ...]:
    """Shapes of up to four dimensions, empty ones and ones beyond a block of lanes included."""
    dims = draw(st.integers(least_dims, 4))
    most = {0: 1, 1: 300, 2: 70, 3: 20, 4: 9}[dims]
    return tuple(draw(st.lists(st.integers(0, most), min_size=dims, max_size=dims)))


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Values of one shape: contiguous, sliced, permuted, or expanded along a dimension."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))

    def values(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    layout = draw(st.sampled_from(["contiguous", "sliced", "permuted", "expanded"]))
    if not shape or layout == "contiguous":
        return values(*shape)
    if layout == "sliced":
        wide = values(*shape[:-1], 2 * shape[-1] + 1)
        return wide[..., 1::2]
    if layout == "permuted":
        order = draw(st.permutations(range(len(shape))))
        stored = values(*(shape[i] for i in order))
        return stored.permute([order.index(i) for i in range(len(shape))])
    axis = draw(st.integers(0, len(shape) - 1))
    return values(*shape[:axis], 1, *shape[axis + 1 :]).expand(shape)


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors hold the same bits, NaN and the sign of zero included."""
    width = {8: torch.int64, 4: torch.int32, 2: torch.int16}[left.element_size()]
    return left.dtype == right.dtype and torch.equal(
        left.contiguous().view(width), right.contiguous().view(width)
    )
