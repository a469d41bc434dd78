"""The operators above 2^31 elements: ``make big-tensors``, a minute and 5 GB of memory.

Inputs are mapped zeros, of which only the pages that are written to take room; a few elements at
both ends and around element 2^31 hold something, and there the results are compared with those of
a small tensor.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

import torch
from torch import Tensor

from esper.kasmina import native

native.load()
OPS = torch.ops.esper
MAP_NORESERVE = 0x4000
WIDTH = 1024
ROWS = 2**21 + 64
COUNT = ROWS * WIDTH
PLACES = [0, 2**31 - 5 * WIDTH, 2**31, COUNT - 4 * WIDTH]
"""Where runs of four rows begin that are not zero: at both ends and around element 2^31."""


def sparse(generator: torch.Generator) -> Tensor:
    """``[ROWS, WIDTH]`` in bfloat16, zero but at ``PLACES``."""
    room = mmap.mmap(-1, 2 * COUNT, flags=mmap.MAP_PRIVATE | MAP_NORESERVE)
    x = torch.frombuffer(room, dtype=torch.bfloat16)
    for place in PLACES:
        x[place : place + 4 * WIDTH] = torch.randn(4 * WIDTH, generator=generator)
    return x.view(ROWS, WIDTH)


def few(x: Tensor) -> Tensor:
    """The rows of ``x`` that are not zero."""
    starts = [place // WIDTH for place in PLACES]
    return torch.cat([x[start : start + 4] for start in starts])


def blend(h: Tensor, delta: Tensor) -> None:
    alpha = torch.tensor([0.3])
    assert torch.equal(
        few(OPS.graft_blend(h, delta, alpha)), OPS.graft_blend(few(h), few(delta), alpha)
    )


def blend_backward(grad: Tensor, delta: Tensor) -> None:
    alpha = torch.tensor([0.3])
    to_delta, to_alpha = OPS.graft_blend_backward(grad, delta, alpha)
    wanted, total = OPS.graft_blend_backward(few(grad), few(delta), alpha)
    assert torch.equal(few(to_delta), wanted)
    torch.testing.assert_close(to_alpha, total)


def statistics(x: Tensor, _: Tensor) -> None:
    figures = OPS.slot_stats(x, 1)
    values = few(x).double()
    torch.testing.assert_close(figures[0], values.sum(0) / ROWS)
    torch.testing.assert_close(figures[1], values.square().sum(0) / ROWS - figures[0].square())
    assert torch.equal(figures[2], values.abs().amax(0))
    assert not figures[4].any()
    table = torch.zeros(1, 5, dtype=torch.float64)
    OPS.record_stats([x], table, [0])
    assert table.isfinite().all()


def project(h: Tensor, _: Tensor) -> None:
    hidden, up = torch.randn(ROWS, 2).bfloat16(), torch.randn(WIDTH, 2).bfloat16()
    rest = (up, None, torch.tensor([0.3]))
    assert torch.equal(
        few(OPS.graft_project(h, hidden, *rest)), OPS.graft_project(few(h), few(hidden), *rest)
    )


def project_backward(grad: Tensor, _: Tensor) -> None:
    hidden, up = torch.randn(ROWS, 2).bfloat16(), torch.randn(WIDTH, 2).bfloat16()
    rest = (up, None, torch.tensor([0.3]))
    to_hidden, to_up, _, to_alpha = OPS.graft_project_backward(grad, hidden, *rest)
    few_hidden, few_up, _, few_alpha = OPS.graft_project_backward(few(grad), few(hidden), *rest)
    assert torch.equal(few(to_hidden), few_hidden)
    torch.testing.assert_close(to_up, few_up, rtol=0.02, atol=0.02)
    torch.testing.assert_close(to_alpha, few_alpha)


CHECKS: tuple[Callable[[Tensor, Tensor], None], ...] = (
    blend,
    blend_backward,
    statistics,
    project,
    project_backward,
)


def main() -> None:
    """Run every check and print its name."""
    generator = torch.Generator().manual_seed(0)
    left, right = sparse(generator), sparse(generator)
    for check in CHECKS:
        check(left, right)
        print(f"{check.__name__}: {COUNT:,} elements, as few")


if __name__ == "__main__":
    main()
