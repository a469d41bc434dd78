"""Autograd nodes in C++ and in Python: the same bits, whichever serve."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from esper.blueprints.build import Graft, build
from esper.blueprints.ir import Activation, Blueprint, Linear, LowRank, Size
from esper.blueprints.library import LIBRARY
from esper.kasmina import native, ops, residual
from esper.kasmina.graft import GraftedSeed
from esper.kasmina.residual import residual_graft
from esper.kasmina.slots import find_slots
from support.tensors import DTYPES, same_bits

ACTIVATIONS = ["relu", "gelu", "silu", "tanh", "sigmoid"]
Call = Callable[[], list[Tensor | None]]


@pytest.fixture
def in_python(monkeypatch: pytest.MonkeyPatch) -> Callable[[Call], list[Tensor | None]]:
    """Calls something as if there were no library."""

    def call(function: Call) -> list[Tensor | None]:
        with monkeypatch.context() as context:
            context.setattr(ops, "_node", None)
            context.setattr(residual, "_node", None)
            return function()

    return call


def equal(left: list[Tensor | None], right: list[Tensor | None]) -> bool:
    pairs = zip(left, right, strict=True)
    return all(
        a is b is None or (a is not None and b is not None and same_bits(a, b)) for a, b in pairs
    )


def test_this_torch_has_its_library() -> None:
    assert ops.nodes is not None
    assert [path.name for path in native.CPU_LIBRARY.parent.glob("libesper_autograd*")] == [
        f"libesper_autograd-{torch.__version__}.so"
    ]


def test_a_library_of_another_torch_is_not_loaded_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "libesper_autograd-1.2.3.so").write_bytes(b"would not load")
    with caplog.at_level(logging.DEBUG, "esper.kasmina"):
        assert native.load_nodes(tmp_path) is None
        assert native.load_nodes(tmp_path / "nothing") is None
    (tmp_path / f"libesper_autograd-{torch.__version__}.so").write_bytes(b"damaged")
    assert native.load_nodes(tmp_path) is None
    first, second, third = (record.getMessage() for record in caplog.records)
    assert "got libesper_autograd-1.2.3.so, wanted" in first
    assert "got none that is compiled" in second
    assert "nodes in Python serve" in third
    assert "does not load beside torch" in third


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("alpha_dtype", [torch.float32, torch.float64])
def test_blends_have_the_same_bits(
    in_python: Callable[[Call], list[Tensor | None]],
    dtype: torch.dtype,
    learns: bool,
    alpha_dtype: torch.dtype,
) -> None:
    h, delta = torch.randn(5, 7).to(dtype), torch.randn(7, 5).to(dtype).t()
    alpha = torch.tensor([0.3], dtype=alpha_dtype, requires_grad=learns)
    leaves = [h.requires_grad_(), delta.requires_grad_(), *([alpha] if learns else [])]
    weight = torch.randn(5, 7).to(dtype)

    def run() -> list[Tensor | None]:
        out = ops.graft_blend(h, delta, alpha)
        first = torch.autograd.grad((out * weight).square().sum(), leaves, create_graph=True)
        total = sum(g.double().square().sum() for g in first)
        assert isinstance(total, Tensor)
        return [out, *first, *torch.autograd.grad(total, leaves)]

    assert equal(run(), in_python(run))


@pytest.mark.parametrize("groups", [(), (3,)])
@pytest.mark.parametrize("rank", [3, residual.SMALL_RANK_ALONE + 1, residual.SMALL_RANK + 1])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", [None, *residual._NUMBERS])
def test_residual_grafts_have_the_same_bits(
    in_python: Callable[[Call], list[Tensor | None]],
    groups: tuple[int, ...],
    rank: int,
    bias: bool,
    activation: residual.Activation | None,
) -> None:
    h, x, alpha = torch.randn(4, 3, 5), torch.randn(4, 3, 6), torch.tensor([0.3])
    down, up = torch.randn(*groups, rank, 6), torch.randn(*groups, 5, rank)
    leaves = [t.requires_grad_() for t in (h, x, alpha, down, up)]
    biases: dict[str, Tensor] = {}
    if bias:
        biases["down_bias"] = torch.randn(*groups, rank, requires_grad=True)
        biases["up_bias"] = torch.randn(*groups, 5, requires_grad=True)
        leaves += biases.values()
    grad = torch.randn(*groups, 4, 3, 5)

    def run() -> list[Tensor | None]:
        out = residual_graft(h, x, down, up, alpha, activation=activation, **biases)
        return [out, *torch.autograd.grad(out, leaves, grad)]

    assert equal(run(), in_python(run))


def two_layers(activation: str | None, rank: int) -> Blueprint:
    size = Size("one", rank)
    if activation is None:
        pair = LowRank(0, rank=size, size=Size("out"), init="zero")
        return Blueprint("pair", "output", (pair,))
    between = Activation(1, activation)  # type: ignore[arg-type]
    nodes = (Linear(0, size), between, Linear(2, Size("out"), init="zero"))
    return Blueprint("pair", "output", nodes)


def seed_of(blueprint: Blueprint, shape: tuple[int, ...], dtype: torch.dtype) -> GraftedSeed:
    host = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12)).to(dtype)
    slots = find_slots(host, lambda: host(torch.randn(shape).to(dtype))).slots
    slot = next(s for s in slots.values() if s.source == blueprint.source)
    seed = GraftedSeed(build(blueprint, slot, torch.Generator().manual_seed(1)), slot)
    with torch.no_grad():
        for parameter in seed.body.parameters():
            parameter.add_(torch.randn(parameter.shape).to(dtype), alpha=0.1)
    return seed


def made_by(out: Tensor, node: str) -> bool:
    return out.grad_fn is not None and node in out.grad_fn.name()


def gradients(seed: GraftedSeed, h: Tensor, x: Tensor | None, grad: Tensor) -> list[Tensor | None]:
    out = seed(h, x)
    leaves = [h, *([] if x is None else [x]), *seed.body.parameters()]
    return [out, *torch.autograd.grad(out, leaves, grad, allow_unused=True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("rank", [residual.SMALL_RANK_ALONE, residual.SMALL_RANK_ALONE + 1])
def test_a_seed_of_two_layers_is_grafted_in_one_call(
    in_python: Callable[[Call], list[Tensor | None]],
    dtype: torch.dtype,
    activation: str | None,
    rank: int,
) -> None:
    """With the bits of Python's nodes; above the small ranks those are of body and blend."""
    seed = seed_of(two_layers(activation, rank), (4, 3, 12), dtype)
    h = torch.randn(4, 3, 12, dtype=dtype, requires_grad=True)
    grad = torch.randn(4, 3, 12).to(dtype)
    for alpha in (0.0, 0.5, 1.0):
        seed.alpha.fill_(alpha)
        got = gradients(seed, h, None, grad)
        assert made_by(seed(h, None), "ResidualGraft")
        assert equal(got, in_python(lambda: gradients(seed, h, None, grad)))
        assert got[1] is not None and same_bits(got[1], grad)
        if alpha == 0.0:
            assert got[0] is not None and same_bits(got[0], h)
        with torch.no_grad():
            wanted = h.double() + alpha * seed.body(h).double()
        torch.testing.assert_close(got[0], wanted.to(dtype), rtol=2e-2, atol=2e-2)


def test_a_span_is_read_without_a_gradient() -> None:
    seed = seed_of(LIBRARY["widen"], (4, 12), torch.float32)
    h, x = (torch.randn(4, 12, requires_grad=True) for _ in range(2))
    seed.alpha.fill_(0.5)
    assert made_by(seed(h, x), "ResidualGraft")
    out, to_h, to_x, *rest = gradients(seed, h, x, torch.ones(4, 12))
    assert out is not None and to_h is not None and bool((to_h == 1).all())
    assert to_x is None and all(g is not None and bool(g.any()) for g in rest)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def hooked(body: Graft) -> None:
    body.nodes[0].register_forward_hook(lambda _, __, output: output * 2)


def parametrized(body: Graft) -> None:
    nn.utils.parametrize.register_parametrization(body.nodes[2], "weight", Doubled())


def replaced(body: Graft) -> None:
    body.nodes[1] = nn.Softplus()


def extended(body: Graft) -> None:
    body.nodes.append(nn.Tanh())


def of_another_dtype(body: Graft) -> None:
    body.nodes.double()
    body.register_forward_pre_hook(lambda _, args: (args[0].double(),))


class Unhashable:
    """An activation that no dictionary takes."""

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, x: Tensor) -> Tensor:
        return x.sin()


def strange(body: Graft) -> None:
    """A body of somebody else's, whose activation nobody here knows."""
    layers = body.two_layers()
    assert layers is not None
    body.two_layers = lambda: layers._replace(activation=torch.sin)  # type: ignore[method-assign]


def unhashable(body: Graft) -> None:
    layers = body.two_layers()
    assert layers is not None
    body.two_layers = lambda: layers._replace(activation=Unhashable())  # type: ignore[method-assign]


CHANGES = [hooked, parametrized, replaced, extended, of_another_dtype, strange, unhashable]


@pytest.mark.parametrize("change", CHANGES)
def test_a_body_that_does_more_than_two_layers_is_called(change: Callable[[Graft], None]) -> None:
    seed = seed_of(LIBRARY["bottleneck_mlp"], (4, 12), torch.float32)
    assert isinstance(seed.body, Graft)
    seed.alpha.fill_(0.5)
    change(seed.body)
    h = torch.randn(4, 12, requires_grad=True)
    wanted = ops.graft_blend(h, seed.body(h.detach()).to(h.dtype), seed.alpha)
    got = seed(h, None)
    assert same_bits(got, wanted) and made_by(got, "GraftBlend")


def test_a_fossil_is_its_host_and_its_body() -> None:
    seed = seed_of(LIBRARY["low_rank"], (4, 12), torch.float32)
    seed.isolated = False
    h = torch.randn(4, 12)
    assert same_bits(seed(h, None), h + seed.body(h))


def test_strides_of_the_host_are_kept() -> None:
    seed = seed_of(LIBRARY["low_rank"], (4, 3, 12), torch.float32)
    seed.alpha.fill_(0.5)
    h = torch.randn(3, 4, 12).transpose(0, 1)
    assert seed(h, None).stride() == h.stride()


def test_autocast_has_the_dtypes_of_torch() -> None:
    seed = seed_of(LIBRARY["low_rank"], (4, 12), torch.float32)
    seed.alpha.fill_(0.5)
    h = torch.randn(4, 12)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = h + 0.5 * seed.body(h).float()
        assert same_bits(seed(h, None), wanted)


@pytest.mark.parametrize("node", [True, False])
def test_forward_gradients_are_refused_and_never_dropped(
    monkeypatch: pytest.MonkeyPatch, node: bool
) -> None:
    if not node:
        monkeypatch.setattr(ops, "_node", None)
        monkeypatch.setattr(residual, "_node", None)
    h, alpha = torch.randn(3, 4), torch.ones(1)
    down, up = torch.randn(2, 4), torch.randn(4, 2)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(h, torch.ones_like(h))
        for call in (
            lambda: ops.graft_blend(dual, h, alpha),
            lambda: residual_graft(h, dual, down, up, alpha),
        ):
            with pytest.raises((RuntimeError, NotImplementedError), match="jvp|forward AD"):
                call()
