"""The operators against plain torch, on this machine and in one run.

``make bench`` runs both parts: pytest-benchmark for times, and ``python -m benchmarks.bench_ops``
for ratios (``benchmarks.ratios``).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.ratios import Call, Case, print_table
from esper.kasmina import ops

SMALL, LARGE = (64, 32), (4096, 1024)


def forward_case(shape: tuple[int, ...], dtype: torch.dtype, peer_name: str) -> Case:
    h, delta = torch.randn(2, *shape).to(dtype)
    alpha, out = torch.tensor([0.3], dtype=dtype), torch.empty(shape, dtype=dtype)
    compiled = torch.compile(lambda h, d, a: h + a * d)
    peers: dict[str, Call] = {
        "h + a * d": lambda: h + alpha * delta,
        "copy_": lambda: out.copy_(h),
        "addcmul": lambda: torch.addcmul(h, delta, alpha),
        "torch.compile": lambda: compiled(h, delta, alpha),
        "clone": h.clone,
    }
    name = f"graft_blend forward {list(shape)} {str(dtype)[6:]}"
    return Case(name, lambda: ops.graft_blend(h, delta, alpha), peer_name, peers[peer_name])


def training_case(shape: tuple[int, ...], alpha_learns: bool, compiled: bool = False) -> Case:
    h, delta = (torch.randn(shape, requires_grad=True) for _ in range(2))
    alpha = torch.full((1,), 0.3, requires_grad=alpha_learns)
    grad = torch.randn(shape)
    wanted = [h, delta, alpha] if alpha_learns else [h, delta]

    def step(blend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Call:
        return lambda: torch.autograd.grad(blend(h, delta, alpha), wanted, grad)

    learns = ", alpha learns" if alpha_learns else ""
    name = f"graft_blend forward + backward {list(shape)}{learns}"

    def plain(h: Tensor, delta: Tensor, alpha: Tensor) -> Tensor:
        return h + alpha * delta

    peer = torch.compile(plain) if compiled else plain
    peer_name = "torch.compile" if compiled else "h + a * d"
    return Case(name, step(ops.graft_blend), peer_name, step(peer))


def stats_case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    x = torch.randn(shape).to(dtype)
    axes = [axis for axis in range(x.dim()) if axis != 1]

    def eager() -> Tensor:
        finite = x.isfinite()
        variance, mean = torch.var_mean(x, axes, correction=0)
        zeros = (x == 0).float().mean(axes)
        return torch.stack([mean, variance, x.abs().amax(axes), zeros, (~finite).sum(axes)])

    name = f"slot_stats {list(shape)} {str(dtype)[6:]}"
    return Case(name, lambda: ops.slot_stats(x, 1), "five torch reductions", eager)


def read_case() -> Case:
    """One read of a tensor, against one read and one write of it."""
    x = torch.randn(LARGE)
    out = torch.empty_like(x)
    return Case(
        f"slot_stats {list(LARGE)} float32",
        lambda: ops.slot_stats(x, 1),
        "copy_",
        lambda: out.copy_(x),
    )


def cases() -> list[Case]:
    """All comparisons; built on demand because the large ones take memory."""
    f32, f64, bf16 = torch.float32, torch.float64, torch.bfloat16
    return [
        *(forward_case(SMALL, f32, peer) for peer in ("h + a * d", "addcmul", "torch.compile")),
        *(
            forward_case(LARGE, f32, peer)
            for peer in ("h + a * d", "addcmul", "torch.compile", "clone", "copy_")
        ),
        forward_case(LARGE, f64, "h + a * d"),
        forward_case(LARGE, bf16, "h + a * d"),
        training_case(SMALL, alpha_learns=False),
        training_case(SMALL, alpha_learns=False, compiled=True),
        training_case(SMALL, alpha_learns=True),
        training_case(LARGE, alpha_learns=False),
        training_case(LARGE, alpha_learns=False, compiled=True),
        training_case(LARGE, alpha_learns=True),
        stats_case(SMALL, f32),
        stats_case(LARGE, f32),
        read_case(),
        stats_case(LARGE, bf16),
        stats_case((64, 64, 28, 28), f32),
    ]


CASES = {f"{case.name} vs {case.peer_name}": case for case in cases()}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("side", ["operator", "peer"])
def test_time(benchmark: BenchmarkFixture, name: str, side: str) -> None:
    benchmark.group = name
    benchmark(getattr(CASES[name], side))


if __name__ == "__main__":
    print_table(CASES.values())
