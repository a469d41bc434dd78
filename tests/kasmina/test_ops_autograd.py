"""The operators under autograd, functional transforms and torch.compile."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

from esper.kasmina import ops


def leaf(*size: int) -> Tensor:
    return torch.randn(*size, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("blend", [ops.graft_blend, torch.ops.esper.graft_blend])
def test_gradients_of_first_and_second_order(blend: object) -> None:
    assert callable(blend)
    for value in (0.3, 1.0):
        alpha = torch.tensor([value], dtype=torch.float64, requires_grad=True)
        assert gradcheck(blend, (leaf(3, 4), leaf(3, 4), alpha))
        assert gradgradcheck(blend, (leaf(3, 4), leaf(3, 4), alpha))


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_gradients_with_a_fixed_alpha(value: float) -> None:
    alpha = torch.tensor(value)
    assert gradcheck(lambda h, d: ops.graft_blend(h, d, alpha), (leaf(3, 4), leaf(3, 4)))
    assert gradgradcheck(lambda h, d: ops.graft_blend(h, d, alpha), (leaf(3, 4), leaf(3, 4)))


def test_backward_operator_is_differentiable() -> None:
    alpha = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    backward = torch.ops.esper.graft_blend_backward
    assert gradcheck(backward, (leaf(3, 4), leaf(3, 4), alpha))
    assert gradgradcheck(backward, (leaf(3, 4), leaf(3, 4), alpha))


@pytest.mark.parametrize("learns", [False, True])
def test_only_an_alpha_that_learns_keeps_delta_alive(learns: bool) -> None:
    delta = leaf(3) + 1.0
    kept = weakref.ref(delta)
    out = ops.graft_blend(leaf(3), delta, torch.ones(1, requires_grad=learns))
    del delta
    assert (kept() is not None) == learns
    assert out.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    for requires_grad in (False, True):
        h = torch.randn(4, 6, dtype=dtype, requires_grad=requires_grad)
        delta = torch.randn(6, 4, dtype=dtype).t().requires_grad_(requires_grad)
        alpha = torch.tensor([0.5], dtype=dtype, requires_grad=requires_grad)
        torch.library.opcheck(torch.ops.esper.graft_blend.default, (h, delta, alpha))
        torch.library.opcheck(torch.ops.esper.graft_blend_backward.default, (h, delta, alpha))
    for axis in (0, -1):
        x = torch.randn(4, 6, 5, dtype=dtype).transpose(0, 1)
        torch.library.opcheck(torch.ops.esper.slot_stats.default, (x, axis))


def test_compiles_without_a_graph_break_and_without_recompiling_for_alpha() -> None:
    graphs = 0

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    def step(h: Tensor, delta: Tensor, alpha: Tensor) -> Tensor:
        return ops.graft_blend(h, delta, alpha).tanh() + ops.slot_stats(h, 1)[0].sum()

    h, delta = leaf(4, 6), leaf(4, 6)
    compiled = torch.compile(step, fullgraph=True, backend=count)
    for value in (0.0, 0.25, 1.0):
        alpha = torch.tensor([value], dtype=torch.float64)
        torch.testing.assert_close(compiled(h, delta, alpha), step(h, delta, alpha))
    assert graphs == 1


def test_compiled_gradients_equal_eager_ones() -> None:
    inputs = [leaf(4, 6), leaf(4, 6), torch.tensor([0.3], dtype=torch.float64, requires_grad=True)]

    def loss(h: Tensor, delta: Tensor, alpha: Tensor) -> Tensor:
        return ops.graft_blend(h.sin(), delta, alpha).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    eager = torch.autograd.grad(loss(*inputs), inputs)
    for wanted, got in zip(eager, torch.autograd.grad(compiled(*inputs), inputs), strict=True):
        torch.testing.assert_close(got, wanted)


def test_inductor_compiles_forward_and_backward() -> None:
    h, delta = leaf(4, 6), leaf(4, 6)
    alpha = torch.tensor([0.3], dtype=torch.float64)
    compiled = torch.compile(ops.graft_blend, fullgraph=True)
    got = torch.autograd.grad(compiled(h, delta, alpha).sum(), delta)[0]
    torch.testing.assert_close(got, torch.full_like(delta, 0.3))


class Blend(torch.nn.Module):
    def forward(self, h: Tensor, delta: Tensor, alpha: Tensor) -> Tensor:
        return ops.graft_blend(h, delta, alpha)


def test_exports_as_the_operator_itself() -> None:
    program = torch.export.export(Blend(), (torch.ones(3), torch.ones(3), torch.ones(1)))
    assert "torch.ops.esper.graft_blend.default" in program.graph_module.code


def test_runs_on_fake_tensors_and_under_activation_checkpointing() -> None:
    with FakeTensorMode():
        h = torch.randn(3, 4, requires_grad=True)
        ops.graft_blend(h, torch.randn(3, 4), torch.ones(1)).sum().backward()
        assert h.grad is not None
    inputs = (leaf(3, 4), leaf(3, 4), torch.tensor(0.5))
    kept = torch.utils.checkpoint.checkpoint(ops.graft_blend, *inputs, use_reentrant=False)
    (got,) = torch.autograd.grad(kept.sum(), inputs[1])
    torch.testing.assert_close(got, torch.full_like(got, 0.5))


def test_works_in_transforms_of_functions() -> None:
    h, delta, alpha = leaf(3, 4).detach(), leaf(3, 4).detach(), torch.tensor(0.3).double()

    def loss(h: Tensor, delta: Tensor, alpha: Tensor) -> Tensor:
        return ops.graft_blend(h, delta, alpha).square().sum()

    blended = 2 * (h + alpha * delta)
    wanted = (blended, alpha * blended, (blended * delta).sum())
    for got, one in zip(torch.func.grad(loss, (0, 1, 2))(h, delta, alpha), wanted, strict=True):
        torch.testing.assert_close(got, one)
    (curvature,) = torch.func.jacrev(torch.func.grad(loss, (2,)), (2,))(h, delta, alpha)[0]
    torch.testing.assert_close(curvature, 2 * delta.square().sum())


@pytest.mark.parametrize("one_alpha", [True, False])
def test_a_batch_of_blends_is_each_blend(one_alpha: bool) -> None:
    h, delta = leaf(3, 4).detach(), leaf(4, 3).detach()
    alphas = torch.tensor([0.3, 0.0, 1.0], dtype=torch.float64)
    blend = torch.func.vmap(ops.graft_blend, (0, 1, None if one_alpha else 0))
    got = blend(h, delta, alphas[0] if one_alpha else alphas)
    for row in range(3):
        alpha = alphas[0] if one_alpha else alphas[row]
        assert torch.equal(got[row], ops.graft_blend(h[row], delta[:, row], alpha))

    def total(alphas: Tensor) -> Tensor:
        return torch.func.vmap(ops.graft_blend, (0, 1, 0))(h, delta, alphas).sum()

    torch.testing.assert_close(torch.func.grad(total)(alphas), delta.sum(0))


def test_no_gradient_flows_through_statistics() -> None:
    assert not ops.slot_stats(leaf(3, 4)).requires_grad
