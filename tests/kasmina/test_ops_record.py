from __future__ import annotations

import gc
import math
import mmap

import pytest
import torch
from torch import Tensor

from esper.kasmina import ops

MAP_NORESERVE = 0x4000
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def record(*xs: Tensor) -> Tensor:
    table = torch.full((len(xs) + 1, 5), -1.0, dtype=torch.float64)
    ops.record_stats(list(xs), table, list(range(len(xs))))
    assert bool((table[-1] == -1.0).all())
    return table[:-1]


def reference(x: Tensor) -> Tensor:
    d = x.double().flatten()
    finite = d[d.isfinite()]
    if len(finite) == 0:
        nothing = [math.nan] * 3
        return torch.tensor([*nothing, float((d == 0).double().mean()), float(len(d))])
    zeros, rest = (d == 0).double().mean(), len(d) - len(finite)
    figures = [finite.mean(), finite.var(correction=0), finite.abs().max(), zeros, rest]
    return torch.tensor([float(figure) for figure in figures], dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7, 9), (64, 256), (5000,), (3, 31, 33)])
def test_figures_are_those_of_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3 + 100
    x = x.to(dtype)
    x.view(-1)[::5] = 0.0
    torch.testing.assert_close(record(x)[0], reference(x), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e37])
def test_small_and_large_values_neither_vanish_nor_overflow(
    scale: float, dtype: torch.dtype
) -> None:
    x = (torch.randn(4096, generator=torch.Generator().manual_seed(2)) * scale).to(dtype)
    torch.testing.assert_close(record(x)[0], reference(x), rtol=1e-5, atol=0.0)


def test_what_is_not_finite_is_counted_alone() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    x[3], x[500], x[999] = math.nan, math.inf, -math.inf
    nothing = torch.full((40,), math.nan)
    rows = record(x, nothing, torch.empty(0))
    torch.testing.assert_close(rows[0], reference(x), rtol=1e-5, atol=1e-9)
    assert rows[1, 4] == 40 and bool(rows[1, :3].isnan().all())
    assert rows[2, 4] == 0 and bool(rows[2, :4].isnan().all())


def test_any_layout_is_read() -> None:
    x = torch.randn(40, 30, generator=torch.Generator().manual_seed(4))
    rows = record(x.t(), x[::2, 1:], x.expand(2, 40, 30))
    for row, y in zip(rows, (x.t(), x[::2, 1:], x), strict=True):
        torch.testing.assert_close(row, reference(y), rtol=1e-5, atol=1e-9)


def test_large_tensors_are_sampled_in_evenly_spaced_blocks() -> None:
    x = torch.zeros(64 * 4096)
    x.view(64, 4096)[::16] = 1.0
    assert record(x)[0].tolist() == [1.0, 0.0, 1.0, 0.0, 0.0]
    below = torch.randn(4 * 4096, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(record(below)[0], reference(below), rtol=1e-5, atol=1e-9)


def test_tensors_that_learn_are_read_without_a_graph() -> None:
    x = torch.randn(6, requires_grad=True) * 2
    table = torch.zeros(1, 5, dtype=torch.float64)
    ops.record_stats([x], table, [0])
    assert not table.requires_grad and table[0, 2] == float(x.detach().abs().max())


def test_what_does_not_fit_is_named() -> None:
    x, table = torch.randn(3), torch.zeros(2, 5, dtype=torch.float64)
    cases: list[tuple[list[Tensor], Tensor, list[int], str]] = [
        ([x.int()], table, [0], "wanted float32"),
        ([x], table, [2], "got row 2, wanted 0 to 1"),
        ([x], table, [-1], "got row -1"),
        ([x], table, [0, 1], "got 1 tensors and 2 rows"),
        ([x], table.float(), [0], "wanted a contiguous one"),
        ([x], torch.zeros(5, 2, dtype=torch.float64).t(), [0], "wanted a contiguous one"),
        ([x], table[:, :4], [0], "wanted a contiguous one"),
    ]
    for xs, where, rows, message in cases:
        with pytest.raises(RuntimeError, match=message):
            ops.record_stats(xs, where, rows)


def test_a_tensor_beyond_32_bits_is_found_where_it_lies() -> None:
    """Of zeros that take no room; the operator looks at its last elements too."""
    count = 2**32 + 2 * 4096
    with mmap.mmap(-1, 4 * count, flags=mmap.MAP_PRIVATE | MAP_NORESERVE) as room:
        x = torch.frombuffer(room, dtype=torch.float32)
        blocks = [i * (count // 4096) // 4 * 4096 for i in range(4)]
        for block in blocks:
            x[block : block + 4096] = 3.0
        table = torch.zeros(1, 5, dtype=torch.float64)
        ops.record_stats([x], table, [0])
        assert table[0].tolist() == [3.0, 0.0, 3.0, 0.0, 0.0]
        del x
        gc.collect()
