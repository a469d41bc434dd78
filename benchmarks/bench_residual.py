"""Sixteen candidates of one slot, forward and backward: one call against sixteen modules.

Batch 128, float32, gradients to all weights of all candidates, as a shadow pass needs them.
``python -m benchmarks.bench_residual`` prints ratios to a loop over eager modules and to
``torch.compile`` of that loop; the ranks of the last rows show where the fused operator stops.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from benchmarks.ratios import Call, Case, print_table
from esper.kasmina.residual import residual_graft

BATCH, CANDIDATES = 128, 16


class Seed(nn.Module):
    """What a user would write."""

    def __init__(self, width: int, rank: int, bottleneck: bool) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=bottleneck)
        self.up = nn.Linear(rank, width, bias=bottleneck)
        self.bottleneck = bottleneck

    def forward(self, h: Tensor) -> Tensor:
        hidden = self.down(h)
        result: Tensor = self.up(hidden.relu() if self.bottleneck else hidden)
        return h + result


def candidates_case(width: int, rank: int, *, bottleneck: bool, compiled: bool) -> Case:
    h, alpha = torch.randn(BATCH, width), torch.ones(1)
    grads = torch.randn(CANDIDATES, BATCH, width)
    seeds = [Seed(width, rank, bottleneck) for _ in range(CANDIDATES)]
    loose = [parameter for seed in seeds for parameter in seed.parameters()]
    apart = list(grads)

    def loop() -> list[Tensor]:
        return [seed(h) for seed in seeds]

    run = torch.compile(loop) if compiled else loop

    down = torch.stack([seed.down.weight.detach() for seed in seeds]).requires_grad_()
    # The width adjacent in memory: what holds the weights of many candidates chooses their layout.
    up = torch.stack([seed.up.weight.detach().T for seed in seeds]).transpose(1, 2).requires_grad_()
    wanted, biases = [down, up], {}
    if bottleneck:
        for name, half in (("down_bias", "down"), ("up_bias", "up")):
            stacked = torch.stack([getattr(seed, half).bias.detach() for seed in seeds])
            biases[name] = stacked.requires_grad_()
        wanted += biases.values()
    activation = torch.relu if bottleneck else None

    def together() -> object:
        out = residual_graft(h, h, down, up, alpha, activation=activation, **biases)
        return torch.autograd.grad(out, wanted, grads)

    kind = "bottleneck, relu" if bottleneck else "low rank"
    return Case(
        f"{CANDIDATES} x {kind} {rank}, width {width}",
        together,
        "torch.compile of the loop" if compiled else "loop of modules",
        lambda: torch.autograd.grad(run(), loose, apart),
    )


def cases() -> list[Case]:
    """Small ranks against both peers, then larger ones against the loop."""
    measured = [
        candidates_case(width, 8, bottleneck=bottleneck, compiled=compiled)
        for bottleneck in (False, True)
        for width in (64, 256, 1024)
        for compiled in (False, True)
    ]
    for width, rank in ((256, 16), (256, 32), (256, 64), (1024, 16), (1024, 32), (1024, 64)):
        measured.append(candidates_case(width, rank, bottleneck=False, compiled=False))
    return measured


CASES: dict[str, Case] = {f"{case.name} vs {case.peer_name}": case for case in cases()}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("side", ["operator", "peer"])
def test_time(benchmark: BenchmarkFixture, name: str, side: str) -> None:
    call: Call = getattr(CASES[name], side)
    benchmark.group = name
    benchmark(call)


if __name__ == "__main__":
    print_table(CASES.values())
