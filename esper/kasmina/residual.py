"""Seeds of two layers with their graft in one call, alone or all candidates of a slot at once.

A seed that corrects an activation by itself is ``h + alpha * up(act(down(x)))``. The first half is
one ordinary matrix product, for all candidates together; the second half with the graft is
``esper::graft_project`` where the rank is small, which bounds it by memory, and a matrix product
of torch followed by a blend where it is not. All of it is one node of torch's C++ autograd where
there is the library for it (``csrc/autograd``), else several in Python with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.kasmina import native
from esper.kasmina.ops import graft_blend, nodes, transforms_active

Activation = Callable[[Tensor], Tensor]

_project = torch.ops.esper.graft_project.default
_bare_project = _project._op
_project_backward = torch.ops.esper.graft_project_backward.default
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_node: Callable[..., Tensor] | None = nodes and nodes.residual_graft.default._op

SMALL_RANK = 32
"""Up to this rank the fused operator was measured to be the faster one for many candidates at once,
on a CPU."""
SMALL_RANK_ALONE = 8
"""The same for one seed."""

_NUMBERS: dict[Activation | None, int] = {
    None: 0,
    torch.relu: 1,
    functional.relu: 1,
    functional.gelu: 2,
    functional.silu: 3,
    torch.tanh: 4,
    torch.sigmoid: 5,
}
"""What ``csrc/autograd/residual_graft.cpp`` can compute between the halves."""


class TwoLayers(NamedTuple):
    """``up(activation(down(x)))`` on the last axis, by weights and biases of two Linears.

    A seed's body that may be no more than that says so by a method ``two_layers``. It gives None
    where calling the body does anything else: where a hook hangs on it, for example.
    """

    down: Tensor
    down_bias: Tensor | None
    up: Tensor
    up_bias: Tensor | None
    activation: Activation | None


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
    eager = not (torch.compiler.is_compiling() or transforms_active() or _autocasts(x))
    one_dtype = x.dtype == h.dtype == down.dtype == up.dtype
    small = one_dtype and up.shape[-1] <= (SMALL_RANK if up.dim() == 3 else SMALL_RANK_ALONE)
    if eager and one_dtype:
        if h.is_cuda:
            native.require_cuda()
        if _node is not None and (small or up.dim() == 2) and activation in _NUMBERS:
            number = _NUMBERS[activation]
            return _node(h, x, down, up, alpha, down_bias, up_bias, number, small)
        if small and activation is None:
            return _apply_low_rank(h, x, down, down_bias, up, up_bias, alpha)
    hidden = _first_half(x, down, down_bias)
    if activation is not None:
        hidden = activation(hidden)
    if eager and small:
        return _apply_project(h, hidden, up, up_bias, alpha)
    if small and hidden.dtype == up.dtype and not transforms_active():
        return _project(h, hidden, up, up_bias, alpha)  # type: ignore[no-any-return]
    return _through_blend(h, hidden, up, up_bias, alpha)


def graft_body(h: Tensor, x: Tensor, body: nn.Module, alpha: Tensor) -> Tensor | None:
    """``h + alpha * body(x)`` in one call; None where the body must be called for itself.

    That is a body of other than two layers or with layers of another dtype, ``torch.compile``
    (which fuses what it sees), a transform of ``torch.func``, autocast, and an ``h`` whose strides
    the call would not keep. Above ``SMALL_RANK_ALONE`` the bits are those of body and blend.

    Args:
        h: the host's activation, ``[..., width]``.
        x: what the seed reads, with the leading dimensions of ``h``.
        body: the seed's body.
        alpha: one element, on the device of ``h``.
    """
    offer: Callable[[], TwoLayers | None] | None = getattr(body, "two_layers", None)
    if offer is None or torch.compiler.is_compiling() or transforms_active() or _autocasts(h):
        return None
    layers = offer()
    if layers is None or not h.is_contiguous():
        return None
    down, down_bias, up, up_bias, activation = layers
    dtype = h.dtype
    if x.dtype != dtype or down.dtype != dtype or up.dtype != dtype:
        return None
    small = up.size(1) <= SMALL_RANK_ALONE
    if h.is_cuda:
        native.require_cuda()
    if _node is not None:
        number = _NUMBERS[activation]
        return _node(h, x, down, up, alpha, down_bias, up_bias, number, small)
    if not small:
        return None
    if activation is None:
        return _apply_low_rank(h, x, down, down_bias, up, up_bias, alpha)
    hidden = activation(functional.linear(x, down, down_bias))
    return _apply_project(h, hidden, up, up_bias, alpha)


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
        rows = _rows(to_hidden)
        to_h = _to_h(grad, up) if ctx.needs_input_grad[0] else None
        to_x = to_hidden @ down.flatten(0, -2) if ctx.needs_input_grad[1] else None
        to_down = (rows.t() @ _rows(x)).view(down.shape)
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
    units = _by_candidate(hidden, weights)
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
