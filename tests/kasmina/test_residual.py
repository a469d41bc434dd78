"""Two-layer seeds with their graft in one call: values, bits, gradients, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from esper.kasmina import reference, residual
from esper.kasmina.residual import residual_graft
from support.tensors import DTYPES, same_bits, tensors

PROJECT = torch.ops.esper.graft_project.default
BACKWARD = torch.ops.esper.graft_project_backward.default
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2}


class Case(NamedTuple):
    """Arguments of the operator, and a gradient of its result."""

    h: Tensor
    hidden: Tensor
    up: Tensor
    bias: Tensor | None
    alpha: Tensor
    grad: Tensor


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dtype = draw(st.sampled_from(DTYPES))
    lead = draw(st.sampled_from([(), (0,), (1,), (5,), (37,), (3, 11), (1100,)]))
    width = draw(st.sampled_from([0, 1, 5, 16, 33, 70]))
    rank = draw(st.sampled_from([0, 1, 3, 8, 11, 17]))
    groups = draw(st.sampled_from([(), (1,), (3,)]))
    units = rank * (groups[0] if groups else 1)
    bias = draw(tensors((*groups, width), dtype)) if draw(st.booleans()) else None
    value = draw(st.sampled_from([0.0, 1.0, -0.5, 0.3, 2.0]))
    alpha = torch.tensor([value]).to(draw(st.sampled_from([dtype, torch.float32])))
    return Case(
        draw(tensors((*lead, width), dtype)),
        draw(tensors((*lead, units), dtype)),
        draw(tensors((*groups, width, rank), dtype)),
        bias,
        alpha,
        draw(tensors((*groups, *lead, width), dtype)),
    )


def close(got: Tensor, wanted: Tensor, terms: int) -> bool:
    """Whether they agree within the rounding of a sum of ``terms`` numbers of about one."""
    assert (got.shape, got.dtype) == (wanted.shape, got.dtype)
    bound = TOLERANCE[got.dtype] * (4 + terms**0.5) * (1 + wanted.abs())
    return bool(((got.double() - wanted).abs() <= bound).all())


@settings(max_examples=120, deadline=None)
@given(cases())
def test_value_and_gradients_agree_with_the_reference(case: Case) -> None:
    inputs = [case.h, case.hidden, case.up, case.bias, case.alpha]
    twins = [None if t is None else t.double().requires_grad_() for t in inputs]
    wanted = reference.graft_project(*twins)  # type: ignore[arg-type]
    out = PROJECT(*inputs)
    assert out.is_contiguous() and close(out, wanted.detach(), case.up.shape[-1])
    rows = case.h.numel() // max(1, case.h.shape[-1])
    got = BACKWARD(case.grad, *inputs[1:])
    if case.alpha.any():
        used = [t for t in twins[1:] if t is not None]
        exact = torch.autograd.grad(wanted, used, case.grad.double())
        kept = [g for g, t in zip(got, twins[1:], strict=True) if t is not None]
        terms = [case.h.shape[-1], rows, rows, wanted.numel() * (1 + case.up.shape[-1])]
        sizes = [n for n, t in zip(terms, twins[1:], strict=True) if t is not None]
        for own, reference_gradient, size in zip(kept, exact, sizes, strict=True):
            assert close(own, reference_gradient, size)
    else:
        assert all(not g.any() for g in got[:3])


@st.composite
def grafts(draw: st.DrawFn) -> tuple[list[Tensor | None], Any]:
    """Arguments of residual_graft of any layout, and an activation."""
    dtype = draw(st.sampled_from(DTYPES))
    lead = draw(st.sampled_from([(), (0,), (1,), (5,), (3, 11)]))
    width, in_width = draw(st.sampled_from([0, 1, 5, 33])), draw(st.sampled_from([1, 6, 17]))
    rank = draw(st.sampled_from([1, 8, 9, residual.SMALL_RANK + 1]))
    groups = draw(st.sampled_from([(), (1,), (3,)]))
    shapes = [(*lead, width), (*lead, in_width), (*groups, rank, in_width), (*groups, width, rank)]
    biases = [(*groups, rank), (*groups, width)]
    given: list[Tensor | None] = [draw(tensors(shape, dtype)) for shape in shapes]
    given.append(torch.tensor([draw(st.sampled_from([0.0, 1.0, -0.5, 0.3, 2.0]))]))
    given += [draw(tensors(shape, dtype)) if draw(st.booleans()) else None for shape in biases]
    # In bfloat16 a unit of about 0 is rounded to either side, and relu's slope with it.
    smooth = [None, torch.tanh, torch.sigmoid, torch.nn.functional.gelu]
    kinds = smooth if dtype is torch.bfloat16 else list(residual._NUMBERS)
    return given, draw(st.sampled_from(kinds))


def plain_graft(given: list[Any], activation: Any) -> Tensor:
    h, x, down, up, alpha, down_bias, up_bias = given
    units = x @ down.mT if down.dim() == 2 else torch.einsum("...i,kri->k...r", x, down)
    lead = (slice(None),) * (down.dim() - 2) + (None,) * (x.dim() - 1)
    units = units if down_bias is None else units + down_bias[lead]
    units = units if activation is None else activation(units)
    delta = units @ up.mT if up.dim() == 2 else torch.einsum("k...r,kwr->k...w", units, up)
    delta = delta if up_bias is None else delta + up_bias[lead]
    return h + alpha * delta


@settings(max_examples=100, deadline=None)
@given(grafts())
def test_both_halves_agree_with_float64_for_any_layout(graft: tuple[list[Any], Any]) -> None:
    inputs, activation = graft
    dtype = inputs[0].dtype

    def run(call: Any, *, double: bool) -> list[Tensor]:
        leaves = [
            None if t is None else (t.double() if double else t).detach().requires_grad_()
            for t in inputs
        ]
        out = call(leaves)
        return [out.detach(), *torch.autograd.grad(out.sum(), [t for t in leaves if t is not None])]

    def own(leaves: list[Any]) -> Tensor:
        *given, down_bias, up_bias = leaves
        return residual_graft(*given, down_bias=down_bias, up_bias=up_bias, activation=activation)

    got = run(own, double=False)
    wanted = run(lambda leaves: plain_graft(leaves, activation), double=True)
    loose = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 0.1}
    for one, exact in zip(got, wanted, strict=True):
        assert one.shape == exact.shape
        bound = max(loose[one.dtype], loose[dtype]) * (
            1 + exact.abs().amax() if exact.numel() else 1
        )
        assert bool(((one.double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_at_alpha_zero_the_bits_are_those_of_h(dtype: torch.dtype) -> None:
    h = torch.tensor([[-0.0, 0.0, 1.5, float("inf"), float("nan")]], dtype=dtype)
    poison = torch.full((2, 5, 1), float("nan"), dtype=dtype)
    for rank in (1, residual.SMALL_RANK + 1):
        down, up = poison[:, :1].expand(2, rank, 1), poison.expand(2, 5, rank)
        out = residual_graft(h, h[:, :1], down, up, torch.zeros(1, dtype=dtype))
        assert all(same_bits(one, h) for one in out)


def weights(groups: tuple[int, ...], rank: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "down": torch.randn(*groups, rank, 6, dtype=dtype),
        "up": torch.randn(*groups, 5, rank, dtype=dtype),
        "down_bias": torch.randn(*groups, rank, dtype=dtype),
        "up_bias": torch.randn(*groups, 5, dtype=dtype),
    }


@pytest.mark.parametrize("activation", [None, torch.relu, torch.nn.functional.gelu])
@pytest.mark.parametrize("rank", [3, residual.SMALL_RANK + 1])
def test_candidates_together_are_candidates_alone(
    rank: int, activation: Callable[[Tensor], Tensor] | None
) -> None:
    """And each is the module that a user would write."""
    h, x = torch.randn(2, 7, 5).double(), torch.randn(2, 7, 6).double()
    alpha = torch.tensor([0.3], dtype=torch.float64)
    stacked = weights((4,), rank, torch.float64)
    together = residual_graft(h, x, alpha=alpha, activation=activation, **stacked)
    for k in range(4):
        own = {name: tensor[k] for name, tensor in stacked.items()}
        alone = residual_graft(h, x, alpha=alpha, activation=activation, **own)
        torch.testing.assert_close(together[k], alone)
        units = torch.nn.functional.linear(x, own["down"], own["down_bias"])
        units = units if activation is None else activation(units)
        delta = torch.nn.functional.linear(units, own["up"], own["up_bias"])
        torch.testing.assert_close(alone, h + alpha * delta)


@pytest.mark.parametrize("groups", [(), (3,)])
@pytest.mark.parametrize("rank", [2, residual.SMALL_RANK + 1])
@pytest.mark.parametrize("activation", [None, torch.tanh])
def test_gradients_of_first_and_second_order(
    groups: tuple[int, ...], rank: int, activation: Callable[[Tensor], Tensor] | None
) -> None:
    def graft(h: Tensor, x: Tensor, alpha: Tensor, *parts: Tensor) -> Tensor:
        named = dict(zip(("down", "up", "down_bias", "up_bias"), parts, strict=True))
        return residual_graft(h, x, alpha=alpha, activation=activation, **named)

    parts = weights(groups, rank, torch.float64)
    inputs = [torch.randn(2, 5).double(), torch.randn(2, 6).double(), torch.tensor([0.3]).double()]
    leaves = [t.requires_grad_() for t in (*inputs, *parts.values())]
    assert gradcheck(graft, leaves, fast_mode=True)
    assert gradgradcheck(graft, leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [(), (3,)])
def test_opcheck(dtype: torch.dtype, groups: tuple[int, ...]) -> None:
    units = 2 * (groups[0] if groups else 1)
    h, hidden = torch.randn(4, 6).to(dtype), torch.randn(4, units).to(dtype)
    up, bias = torch.randn(*groups, 6, 2).to(dtype), torch.randn(*groups, 6).to(dtype)
    alpha, grad = torch.tensor([0.5]), torch.randn(*groups, 4, 6).to(dtype)
    for offset in (None, bias):
        torch.library.opcheck(BACKWARD, (grad, hidden, up, offset, alpha))
        leaves = [None if t is None else t.clone().requires_grad_() for t in (h, hidden, up)]
        torch.library.opcheck(PROJECT, (*leaves, offset, alpha))


@pytest.mark.parametrize("rank", [3, residual.SMALL_RANK + 1])
def test_compiles_without_a_graph_break_and_keeps_its_gradients(rank: int) -> None:
    parts = {name: t.requires_grad_() for name, t in weights((3,), rank, torch.float64).items()}
    h, x = torch.randn(4, 5).double(), torch.randn(4, 6).double()
    alpha = torch.tensor([0.3], dtype=torch.float64)

    def loss() -> Tensor:
        grafted = residual_graft(h.sin(), x, alpha=alpha, activation=torch.relu, **parts)
        return grafted.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(loss(), list(parts.values()))
    for got, eager in zip(
        torch.autograd.grad(compiled(), list(parts.values())), wanted, strict=True
    ):
        torch.testing.assert_close(got, eager)


def test_works_in_transforms_of_functions() -> None:
    parts = weights((3,), 2, torch.float64)
    down = parts.pop("down")
    h, x = torch.randn(4, 5).double(), torch.randn(4, 6).double()
    alpha = torch.tensor([0.3], dtype=torch.float64)

    def loss(down: Tensor, h: Tensor, x: Tensor) -> Tensor:
        return residual_graft(h, x, down, alpha=alpha, **parts).square().sum()

    leaf = down.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(leaf, h, x), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(down, h, x), wanted)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(down, h, x)
    torch.testing.assert_close(each.sum(0), wanted)


def test_works_under_autocast() -> None:
    parts = weights((3,), 2, torch.float32)
    h, x = torch.randn(4, 5), torch.randn(4, 6)
    wanted = residual_graft(h, x, alpha=torch.ones(1), **parts)
    with torch.autocast("cpu", torch.bfloat16):
        got = residual_graft(h, x, alpha=torch.ones(1), **parts)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, rtol=0.1, atol=0.1)


def test_the_host_and_the_input_get_the_gradients_of_all_candidates() -> None:
    parts = weights((3,), 2, torch.float64)
    h, x = (torch.randn(4, n, dtype=torch.float64, requires_grad=True) for n in (5, 6))
    alpha = torch.ones(1, dtype=torch.float64)
    torch.autograd.backward(residual_graft(h, x, alpha=alpha, **parts).sum())
    torch.testing.assert_close(h.grad, torch.full_like(h, 3.0))
    wanted = torch.einsum("kwr,kri->i", parts["up"], parts["down"]).expand(4, 6)
    torch.testing.assert_close(x.grad, wanted)


def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    threads = torch.get_num_threads()
    for groups in ((), (5,)):
        units = 3 * (groups[0] if groups else 1)
        h, hidden = torch.randn(3000, 64), torch.randn(3000, units)
        up, grad = torch.randn(*groups, 64, 3), torch.randn(*groups, 3000, 64)
        alpha = torch.tensor([0.3])
        results = []
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                given = (hidden, up, None, alpha)
                results.append((PROJECT(h, *given), *BACKWARD(grad, *given)))
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


def test_not_a_number_stays_in_its_own_candidate() -> None:
    parts = weights((3,), 2, torch.float32)
    parts["up"][1, 0, 0] = float("nan")
    out = residual_graft(torch.randn(4, 5), torch.randn(4, 6), alpha=torch.ones(1), **parts)
    assert out[0].isfinite().all() and out[2].isfinite().all()
    assert out[1, :, 0].isnan().all() and out[1, :, 1:].isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(4, 7)}, r"got x of shape \[4, 7\], wanted \[4, 6\] beside h"),
        ({"x": torch.zeros(3, 6)}, r"got x of shape \[3, 6\], wanted \[4, 6\] beside h"),
        ({"x": torch.zeros(4, 6).double()}, "got x of dtype torch.float64, wanted torch.float32"),
        ({"down": torch.zeros(6)}, r"and down of shape \[6\], wanted"),
        ({"up": torch.zeros(5, 2)}, r"got up of shape \[5, 2\], wanted \[3, 5, 2\]"),
        ({"up_bias": torch.zeros(5)}, r"got up_bias of shape \[5\], wanted \[3, 5\]"),
        ({"down_bias": torch.zeros(3, 5)}, r"got down_bias of shape \[3, 5\], wanted \[3, 2\]"),
    ],
)
def test_refusals_name_the_call_and_both_sides(change: dict[str, Tensor], message: str) -> None:
    given: dict[str, Any] = {"h": torch.zeros(4, 5), "x": torch.zeros(4, 6), "alpha": torch.ones(1)}
    given |= weights((3,), 2, torch.float32)
    with pytest.raises(RuntimeError, match=f"esper::residual_graft: .*{message}"):
        residual_graft(**(given | change))


@pytest.mark.parametrize(
    ("place", "given", "message"),
    [
        (0, torch.zeros(4, 6), r"h of shape \[4, 6\], wanted \[4, 5\] beside up"),
        (0, torch.zeros(4, 5).double(), r"h of dtype Double, wanted Float \(that of up\)"),
        (1, torch.zeros(4, 5), r"hidden of shape \[4, 5\], wanted \[4, 6\] beside up"),
        (2, torch.zeros(5), r"up of shape \[5\], wanted \[width, rank\]"),
        (2, torch.zeros(3, 5, 2).int(), "up of dtype Int, wanted float32, float64 or bfloat16"),
        (3, torch.zeros(3, 4), r"bias of shape \[3, 4\], wanted \[3, 5\]"),
        (4, torch.ones(2), r"alpha of shape \[2\], wanted one element"),
        (4, torch.ones(1).int(), "alpha of dtype Int, wanted float32"),
    ],
)
def test_refusals_of_the_operator(place: int, given: Tensor, message: str) -> None:
    inputs = [torch.zeros(4, 5), torch.zeros(4, 6), torch.zeros(3, 5, 2), None, torch.ones(1)]
    inputs[place] = given
    with pytest.raises(RuntimeError, match=f"esper::graft_project: got {message}"):
        PROJECT(*inputs)
