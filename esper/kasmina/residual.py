"""Seeds of two layers with their graft in one call, alone or all candidates of a slot at once.

A seed that corrects an activation by itself is ``h + alpha * up(act(down(x)))``. The first half is
one ordinary matrix product, for all candidates together; the second half with the graft is
``esper::graft_project`` where the rank is small, which bounds it by memory, and a batched matrix
product followed by a blend where it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from esper.kasmina import native
from esper.kasmina.ops import graft_blend, transforms_active

_project = torch.ops.esper.graft_project.default
_bare_project = _project._op
_project_backward = torch.ops.esper.graft_project_backward.default._op
_BelowAutograd = torch._C._AutoDispatchBelowAutograd

SMALL_RANK = 32
"""Up to this rank the fused operator was measured to be the faster one, on a CPU."""


def residual_graft(
    h: Tensor,
    x: Tensor,
    down: Tensor,
    up: Tensor,
    alpha: Tensor,
    *,
    down_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """``h + alpha * (act(x @ down^T + down_bias) @ up^T + up_bias)``; ``h`` where alpha is 0.

    With weights of K candidates stacked, the result holds K activations of the slot that all start
    from the same ``h``; the gradient of each reaches its own candidate only, as if each had
    been called alone. At alpha 0 the bits are those of ``h``, whatever the rest holds.

    Differentiable as often as ``activation`` is. Gradients to sums over rows are accumulated in the
    compute type and the gradient to alpha in float64, the same for every thread count. Against a
    loop over K modules much is gained at small ranks and little from ``SMALL_RANK`` on, see
    ``benchmarks/README.md``.

    Args:
        h: the host's activation, ``[..., width]``; float32, float64 or bfloat16 (computed in
            float32 and rounded once).
        x: what the seed reads, ``[..., in_width]``, with the leading dimensions of ``h``.
        down: ``[rank, in_width]``, or ``[K, rank, in_width]``.
        up: ``[width, rank]``, or ``[K, width, rank]``; any strides, and fastest where the width is
            the adjacent dimension in memory (``torch.empty(K, rank, width).transpose(1, 2)``).
        alpha: one element of any floating dtype, shared by the candidates.
        down_bias: ``[rank]`` or ``[K, rank]``.
        up_bias: ``[width]`` or ``[K, width]``.
        activation: elementwise; none makes the correction linear in ``x``.

    Returns:
        ``[..., width]``, or ``[K, ..., width]`` for K candidates.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit; the message names them.
        NativeLibraryError: ``h`` is on a CUDA device and the CUDA library is missing.
    """
    _check(h, x, down, up, down_bias, up_bias)
    small = up.shape[-1] <= SMALL_RANK and x.dtype == h.dtype == down.dtype == up.dtype
    # Autocast asks for the dtypes of torch's own products.
    eager = not (torch.compiler.is_compiling() or transforms_active() or _autocasts(x))
    if eager and small and h.is_cuda:
        native.require_cuda()
    if eager and small and activation is None:
        return _apply_low_rank(h, x, down, down_bias, up, up_bias, alpha)
    hidden = _first_half(x, down, down_bias)
    if activation is not None:
        hidden = activation(hidden)
    if eager and small:
        return _apply_project(h, hidden, up, up_bias, alpha)
    if small and hidden.dtype == up.dtype and not transforms_active():
        return _project(h, hidden, up, up_bias, alpha)  # type: ignore[no-any-return]
    return _through_blend(h, hidden, up, up_bias, alpha)


def _autocasts(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)


def _first_half(x: Tensor, down: Tensor, bias: Tensor | None) -> Tensor:
    """``[..., rank]``, or ``[..., K * rank]``."""
    if down.dim() == 2:
        return functional.linear(x, down, bias)
    return functional.linear(x, down.flatten(0, 1), None if bias is None else bias.flatten())


def _check(
    h: Tensor,
    x: Tensor,
    down: Tensor,
    up: Tensor,
    down_bias: Tensor | None,
    up_bias: Tensor | None,
) -> None:
    """What the matrix product of torch would refuse without a word of this operator."""
    if down.dim() not in (2, 3) or h.dim() < 1 or x.dim() < 1:
        raise RuntimeError(
            f"esper::residual_graft: got h of shape {list(h.shape)}, x of shape {list(x.shape)} "
            f"and down of shape {list(down.shape)}, wanted [..., width], [..., in_width] and "
            "[rank, in_width] or [candidates, rank, in_width]"
        )
    groups, rank, in_width, width = down.shape[:-2], *down.shape[-2:], h.shape[-1]
    wanted = {
        "x": (x, (*h.shape[:-1], in_width)),
        "up": (up, (*groups, width, rank)),
        "down_bias": (down_bias, (*groups, rank)),
        "up_bias": (up_bias, (*groups, width)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tensor.shape != shape:
            raise RuntimeError(
                f"esper::residual_graft: got {name} of shape {list(tensor.shape)}, wanted "
                f"{list(shape)} beside h of shape {list(h.shape)} and down of shape "
                f"{list(down.shape)}"
            )
    if x.dtype != down.dtype and not _autocasts(x):
        raise RuntimeError(
            f"esper::residual_graft: got x of dtype {x.dtype}, wanted {down.dtype} (that of down)"
        )


def _through_blend(
    h: Tensor, hidden: Tensor, up: Tensor, bias: Tensor | None, alpha: Tensor
) -> Tensor:
    """The second half by the matrix products of torch."""
    if up.dim() == 2:
        return graft_blend(h, functional.linear(hidden, up, bias).to(h.dtype), alpha)
    units = _by_candidate(hidden, up)
    weights = up.transpose(1, 2)
    if bias is None:
        delta = torch.bmm(units, weights)
    else:
        delta = torch.baddbmm(bias.unsqueeze(1), units, weights)
    shape = (len(up), *h.shape)
    return graft_blend(h.expand(shape), delta.view(shape).to(h.dtype), alpha)


def _by_candidate(hidden: Tensor, up: Tensor) -> Tensor:
    """``[..., K * rank]`` as ``[K, rows, rank]``."""
    return hidden.reshape(-1, len(up), up.shape[-1]).transpose(0, 1)


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
            hidden = _first_half(x, down, down_bias)
            out = _bare_project(h, hidden, up, up_bias, alpha)
        ctx.save_for_backward(x, down, down_bias, hidden, up, up_bias, alpha)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, down, down_bias, hidden, up, up_bias, alpha = ctx.saved_tensors
        if torch.is_grad_enabled():
            # What was saved knows nothing of where it came from.
            hidden = _first_half(x, down, down_bias)
        to_hidden, to_up, to_up_bias, to_alpha = _second_half(grad, hidden, up, up_bias, alpha)
        rows = to_hidden.reshape(-1, hidden.shape[-1])
        to_h = _to_h(grad, up) if ctx.needs_input_grad[0] else None
        to_x = to_hidden @ down.flatten(0, -2) if ctx.needs_input_grad[1] else None
        to_down = (rows.t() @ x.reshape(-1, x.shape[-1])).view(down.shape)
        to_down_bias = None if down_bias is None else rows.sum(0).view(down_bias.shape)
        return to_h, to_x, to_down, to_down_bias, to_up, to_up_bias, to_alpha


# As for graft_blend: transforms of torch.func have been looked for.
_apply_project: Callable[..., Tensor] = super(torch.autograd.Function, _GraftProject).apply
_apply_low_rank: Callable[..., Tensor] = super(torch.autograd.Function, _LowRankGraft).apply


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
        return _plain_backward(grad, hidden, up, bias, alpha)
    to_hidden, to_up, to_bias, to_alpha = _project_backward(grad, hidden, up, bias, alpha)
    return to_hidden, to_up, None if bias is None else to_bias, to_alpha


def _plain_backward(
    grad: Tensor, hidden: Tensor, up: Tensor, bias: Tensor | None, alpha: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """What the backward operator computes, in differentiable operations: for higher orders."""
    weights = up if up.dim() == 3 else up.unsqueeze(0)
    units = _by_candidate(hidden, weights)
    rows = grad.reshape(len(weights), -1, weights.shape[1])
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


torch.library.register_fake("esper::graft_project", _fake_project)
torch.library.register_fake("esper::graft_project_backward", _fake_project_backward)
torch.library.register_autograd("esper::graft_project", _gradients, setup_context=_setup)
