"""slot_stats: agreement with the float64 reference, edge values, order of summation."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esper.kasmina import native, ops, reference
from support.tensors import DTYPES, same_bits, shapes, tensors

SPECIAL = [0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e30]


@st.composite
def activations(draw: st.DrawFn) -> tuple[Tensor, int]:
    shape = draw(shapes(least_dims=1))
    x = draw(tensors(shape, draw(st.sampled_from(DTYPES))))
    if draw(st.booleans()) and x.numel():
        x = x.clone()
        for value in draw(st.lists(st.sampled_from(SPECIAL), max_size=6)):
            x[tuple(draw(st.integers(0, size - 1)) for size in shape)] = value
    return x, draw(st.integers(-len(shape), len(shape) - 1))


@settings(max_examples=200, deadline=None)
@given(activations())
def test_agrees_with_the_reference_for_any_layout(activation: tuple[Tensor, int]) -> None:
    x, axis = activation
    got = ops.slot_stats(x, axis)
    assert (got.shape, got.dtype) == ((5, x.shape[axis]), torch.float64)
    torch.testing.assert_close(
        got, reference.slot_stats(x, axis), rtol=1e-9, atol=1e-12, equal_nan=True
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(20_000, 37), (40, 3, 50, 50)])
def test_many_blocks_and_threads_give_the_same_bits(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape).to(dtype)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.slot_stats(x, 1))
    finally:
        torch.set_num_threads(threads)
    assert all(same_bits(results[0], other) for other in results[1:])
    torch.testing.assert_close(results[0], reference.slot_stats(x, 1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(5000, 3), (50, 3, 100)])
def test_a_large_mean_does_not_drown_a_small_variance(shape: tuple[int, ...]) -> None:
    x = 1e8 + torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(ops.slot_stats(x, 1), reference.slot_stats(x, 1), rtol=1e-6, atol=0)


def test_what_cannot_be_known_is_not_a_number() -> None:
    lost = torch.tensor([[float("nan"), 1.0], [float("inf"), 0.0]])
    mean, variance, largest, zeros, non_finite = ops.slot_stats(lost, 1).unbind()
    assert [math.isnan(row[0]) for row in (mean, variance, largest)] == [True, True, True]
    assert (mean[1], variance[1], largest[1]) == (0.5, 0.25, 1.0)
    assert zeros.tolist() == [0.0, 0.5]
    assert non_finite.tolist() == [2.0, 0.0]


def test_no_elements() -> None:
    empty = ops.slot_stats(torch.empty(0, 3), 1)
    assert bool(empty[:4].isnan().all()) and not empty[4].any()
    assert ops.slot_stats(torch.empty(3, 0), 1).shape == (5, 0)


@pytest.mark.parametrize(
    ("x", "axis", "message"),
    [
        (torch.zeros(2, 3), 2, r"got axis 2 for x of shape \[2, 3\], wanted -2 to 1"),
        (torch.zeros(()), 0, "got x without dimensions"),
        (torch.zeros(2).long(), 0, "got x of dtype Long, wanted float32"),
    ],
)
def test_refusals_name_the_operator_and_both_sides(x: Tensor, axis: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"esper::slot_stats: {message}"):
        ops.slot_stats(x, axis)


DIGEST = """
import hashlib, torch
from esper.kasmina import native, ops
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    a, b = torch.randn(2, 3001, 37, generator=generator).to(dtype)
    alpha = torch.tensor(0.3)
    results = [ops.graft_blend(a, b, alpha), *torch.ops.esper.graft_blend_backward(a, b, alpha)]
    results += [ops.slot_stats(a, 0), ops.slot_stats(a, 1)]
    for result in results:
        digest.update(result.double().numpy().tobytes())
print(native.cpu_isa(), digest.hexdigest())
"""


def digest_on(isa: str) -> list[str]:
    environment = {**os.environ, "ESPER_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", DIGEST]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return result.stdout.split()


def test_every_instruction_set_of_this_machine_computes_the_same_bits() -> None:
    order = ["baseline", "avx2", "avx512"]
    best = order.index(native.cpu_isa())
    digests = {}
    for isa in order[: best + 1]:
        name, digest = digest_on(isa)
        assert name == isa
        digests[isa] = digest
    assert len(set(digests.values())) == 1, digests


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(subprocess.CalledProcessError) as failure:
        digest_on("sse9")
    assert "got ESPER_CPU_ISA=sse9, wanted baseline, avx2 or avx512" in failure.value.stderr
