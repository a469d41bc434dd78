"""Gradients of ``esper::graft_project``, and what the compiler of torch needs to know about it.

``apply_project`` and ``apply_low_rank`` are nodes of autograd in Python, which serve where there is
no library with nodes in C++ (``csrc/autograd``); both compute the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from esper.kasmina import native

native.load()
project = torch.ops.esper.graft_project.default
_bare_project = project._op
_project_backward = torch.ops.esper.graft_project_backward.default
_BelowAutograd = torch._C._AutoDispatchBelowAutograd


def first_half(x: Tensor, down: Tensor, bias: Tensor | None) -> Tensor:
    """``[..., rank]``, or ``[..., K * rank]``."""
    if down.dim() == 2:
        return functional.linear(x, down, bias)
    return functional.linear(x, down.flatten(0, 1), None if bias is None else bias.flatten())


def by_candidate(hidden: Tensor, up: Tensor) -> Tensor:
    """``[..., K * rank]`` as ``[K, rows, rank]``."""
    rows = _rows(hidden)
    return rows.reshape(len(rows), len(up), up.shape[-1]).transpose(0, 1)


def _rows(t: Tensor) -> Tensor:
    """``[..., width]`` as ``[rows, width]``, a width of 0 too."""
    return t.unsqueeze(0) if t.dim() == 1 else t.flatten(0, -2)


class _GraftProject(torch.autograd.Function):
    """The second half, after an activation."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, hidden: Tensor, up: Tensor, bias: Tensor | None, alpha: Tensor
    ) -> Tensor:
        with _BelowAutograd():
            out = _bare_project(h, hidden, up, bias, alpha)
        ctx.save_for_backward(hidden, up, bias, alpha)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, grad)


class _LowRankGraft(torch.autograd.Function):
    """Both halves without an activation between them: one node where torch would make five."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        x: Tensor,
        down: Tensor,
        down_bias: Tensor | None,
        up: Tensor,
        up_bias: Tensor | None,
        alpha: Tensor,
    ) -> Tensor:
        with _BelowAutograd():
            hidden = first_half(x, down, down_bias)
            out = _bare_project(h, hidden, up, up_bias, alpha)
        ctx.save_for_backward(x, down, down_bias, hidden, up, up_bias, alpha)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, down, down_bias, hidden, up, up_bias, alpha = ctx.saved_tensors
        if torch.is_grad_enabled():
            # What was saved knows nothing of where it came from.
            hidden = first_half(x, down, down_bias)
        to_hidden, to_up, to_up_bias, to_alpha = _second_half(grad, hidden, up, up_bias, alpha)
        rows = _rows(to_hidden)
        to_h = _to_h(grad, up) if ctx.needs_input_grad[0] else None
        to_x = to_hidden @ down.flatten(0, -2) if ctx.needs_input_grad[1] else None
        to_down = (rows.t() @ _rows(x)).view(down.shape)
        to_down_bias = None if down_bias is None else rows.sum(0).view(down_bias.shape)
        return to_h, to_x, to_down, to_down_bias, to_up, to_up_bias, to_alpha


# As for graft_blend: transforms of torch.func have been looked for.
apply_project: Callable[..., Tensor] = super(torch.autograd.Function, _GraftProject).apply
apply_low_rank: Callable[..., Tensor] = super(torch.autograd.Function, _LowRankGraft).apply


def _setup(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    hidden, up, bias, alpha = ctx.saved_tensors
    to_h = _to_h(grad, up) if ctx.needs_input_grad[0] else None
    return to_h, *_second_half(grad, hidden, up, bias, alpha)


def _to_h(grad: Tensor, up: Tensor) -> Tensor:
    return grad.sum(0) if up.dim() == 3 else grad


def _second_half(
    grad: Tensor, hidden: Tensor, up: Tensor, bias: Tensor | None, alpha: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Gradients to ``hidden``, ``up``, ``bias`` and ``alpha``."""
    if torch.is_grad_enabled():
        found = _project_backward(grad, hidden, up, bias, alpha)
    else:
        with _BelowAutograd():
            found = _project_backward._op(grad, hidden, up, bias, alpha)
    to_hidden, to_up, to_bias, to_alpha = found
    return to_hidden, to_up, None if bias is None else to_bias, to_alpha


def _plain_backward(
    grad: Tensor, hidden: Tensor, up: Tensor, bias: Tensor | None, alpha: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """What the backward operator computes, in operations that can be differentiated."""
    weights = up if up.dim() == 3 else up.unsqueeze(0)
    units = by_candidate(hidden, weights)
    rows = _rows(grad)
    rows = rows.reshape(len(weights), len(rows) // len(weights), weights.shape[1])
    scale = alpha.reshape(())
    through = rows @ weights
    to_alpha = (through.double() * units.double()).sum()
    to_bias = None
    if bias is not None:
        total = rows.sum(1).reshape(bias.shape)
        to_bias = scale * total
        to_alpha = to_alpha + (total.double() * bias.double()).sum()
    return (
        (scale * through).transpose(0, 1).reshape(hidden.shape),
        (scale * (rows.transpose(1, 2) @ units)).reshape(up.shape),
        to_bias,
        to_alpha.to(alpha.dtype).reshape(alpha.shape),
    )


def _fake_project(
    h: Tensor, hidden: Tensor, up: Tensor, bias: Tensor | None, alpha: Tensor
) -> Tensor:
    return h.new_empty((*up.shape[:-2], *h.shape))


def _fake_project_backward(
    grad: Tensor, hidden: Tensor, up: Tensor, bias: Tensor | None, alpha: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    to_bias = up.new_empty((0,)) if bias is None else up.new_empty(bias.shape)
    to_hidden = hidden.new_empty(hidden.shape)
    return to_hidden, torch.empty_like(up), to_bias, torch.empty_like(alpha)


def _setup_backward(ctx: Any, inputs: tuple[Tensor | None, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward_gradients(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients through the backward operator, of any order."""
    with torch.enable_grad():
        # Views, so that a gradient stops at these inputs even where one has come from another.
        inputs = [None if t is None else t.view_as(t) for t in ctx.saved_tensors]
        outputs = _plain_backward(*inputs)  # type: ignore[arg-type]
    wanted = [t for t, needed in zip(inputs, ctx.needs_input_grad, strict=True) if needed]
    pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if o is not None]
    found = iter(
        torch.autograd.grad(
            [o for o, _ in pairs],
            wanted,  # type: ignore[arg-type]
            [g for _, g in pairs],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
    )
    return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)


torch.library.register_fake("esper::graft_project", _fake_project)
torch.library.register_fake("esper::graft_project_backward", _fake_project_backward)
torch.library.register_autograd("esper::graft_project", _gradients, setup_context=_setup)
torch.library.register_autograd(
    "esper::graft_project_backward", _backward_gradients, setup_context=_setup_backward
)
