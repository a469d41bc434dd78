"""graft_blend: its value, its bits, its layout, its refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esper.kasmina import ops, reference
from support.tensors import DTYPES, same_bits, shapes, tensors

ALPHA_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ROUNDING = {torch.float32: 2**-23, torch.float64: 2**-51, torch.bfloat16: 2**-8}


@st.composite
def blends(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    shape = draw(shapes())
    dtype = draw(st.sampled_from(DTYPES))
    value = draw(st.sampled_from([0.0, 1.0, -0.5]) | st.floats(0.0, 1.0))
    alpha = torch.tensor(value).to(draw(st.sampled_from(ALPHA_DTYPES)))
    alpha = alpha.reshape(draw(st.sampled_from([(), (1,), (1, 1)])))
    return draw(tensors(shape, dtype)), draw(tensors(shape, dtype)), alpha


@settings(max_examples=150, deadline=None)
@given(blends())
def test_value_agrees_with_the_reference_for_any_layout(blend: tuple[Tensor, ...]) -> None:
    h, delta, alpha = blend
    out = ops.graft_blend(h, delta, alpha)
    assert (out.shape, out.dtype) == (h.shape, h.dtype)
    assert out.stride() == torch.empty_like(h).stride()
    wanted = reference.graft_blend(h, delta, alpha)
    size = h.double().abs() + delta.double().abs()
    assert bool(((out.double() - wanted).abs() <= size * ROUNDING[h.dtype]).all())


@settings(max_examples=60, deadline=None)
@given(blends())
def test_gradients_agree_with_the_reference_for_any_layout(blend: tuple[Tensor, ...]) -> None:
    grad, delta, alpha = blend
    to_delta, to_alpha = torch.ops.esper.graft_blend_backward(grad, delta, alpha)
    wanted_delta, wanted_alpha = reference.graft_blend_backward(grad, delta, alpha)
    assert to_delta.stride() == torch.empty_like(delta).stride()
    assert (to_alpha.dtype, to_alpha.shape) == (alpha.dtype, alpha.shape)
    torch.testing.assert_close(to_delta, wanted_delta.to(delta.dtype), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(to_alpha, wanted_alpha.to(alpha.dtype), atol=1e-9, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_are_those_of_eager_torch(dtype: torch.dtype) -> None:
    h, delta = torch.randn(2, 333, 129, dtype=dtype)
    for value in (1e-3, 0.3, 0.7, 1.0):
        alpha = torch.tensor([value], dtype=dtype)
        assert same_bits(ops.graft_blend(h, delta, alpha), h + alpha * delta)


def test_bfloat16_is_rounded_once() -> None:
    h, delta = torch.randn(2, 4096).bfloat16()
    alpha = torch.tensor(0.3)
    wanted = (h.float() + alpha * delta.float()).bfloat16()
    assert same_bits(ops.graft_blend(h, delta, alpha), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_at_alpha_zero_the_bits_are_those_of_h(dtype: torch.dtype, zero: float) -> None:
    h = torch.tensor([-0.0, 0.0, 1.5, float("inf"), float("nan")], dtype=dtype)
    poison = torch.full_like(h, float("nan"))
    for alpha_dtype in ALPHA_DTYPES:
        out = ops.graft_blend(h, poison, torch.tensor([zero], dtype=alpha_dtype))
        assert same_bits(out, h)
        assert out.data_ptr() != h.data_ptr()


def test_at_alpha_zero_a_gradient_reaches_h_untouched_and_alpha_learns() -> None:
    h = torch.randn(3, 4, requires_grad=True)
    delta = torch.randn(3, 4, requires_grad=True)
    alpha = torch.zeros(1, requires_grad=True)
    grad = torch.randn(3, 4)
    ops.graft_blend(h, delta, alpha).backward(grad)
    assert h.grad is not None and same_bits(h.grad, grad)
    assert delta.grad is not None and not delta.grad.any()
    torch.testing.assert_close(alpha.grad, (grad * delta).sum().reshape(1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_does_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    grad, delta = torch.randn(2, 300_001).to(dtype)
    alpha = torch.tensor(0.25)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            blended = ops.graft_blend(grad, delta, alpha)
            results.append((blended, *torch.ops.esper.graft_blend_backward(grad, delta, alpha)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("h", "delta", "alpha", "message"),
    [
        (
            torch.zeros(2, 3),
            torch.zeros(2, 4),
            torch.ones(1),
            r"delta of shape \[2, 4\], wanted \[2, 3\]",
        ),
        (
            torch.zeros(2),
            torch.zeros(2).double(),
            torch.ones(1),
            "delta of dtype Double, wanted Float",
        ),
        (
            torch.zeros(2).int(),
            torch.zeros(2).int(),
            torch.ones(1),
            "h of dtype Int, wanted float32",
        ),
        (
            torch.zeros(2),
            torch.zeros(2),
            torch.ones(2),
            r"alpha of shape \[2\], wanted one element",
        ),
        (torch.zeros(2), torch.zeros(2), torch.ones(1).int(), "alpha of dtype Int, wanted float32"),
    ],
)
def test_refusals_name_the_operator_and_both_sides(
    h: Tensor, delta: Tensor, alpha: Tensor, message: str
) -> None:
    with pytest.raises(RuntimeError, match=f"esper::graft_blend: got {message}"):
        ops.graft_blend(h, delta, alpha)
