"""Seeds of two layers with their graft in one call, alone or all candidates of a slot at once.

A seed that corrects an activation by itself is ``h + alpha * up(act(down(x)))``. The first half is
one ordinary matrix product, for all candidates together; the second half with the graft is
``esper::graft_project`` where the rank is small, which bounds it by memory, and a matrix product
of torch followed by a blend where it is not. All of it is one node of torch's C++ autograd where
there is the library for it (``csrc/autograd``), else several in Python with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.kasmina import native
from esper.kasmina.ops import graft_blend, nodes, transforms_active
from esper.kasmina.residual_autograd import (
    apply_low_rank,
    apply_project,
    by_candidate,
    first_half,
    project,
)

Activation = Callable[[Tensor], Tensor]

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
        number = _number(activation)
        if _node is not None and (small or up.dim() == 2) and number is not None:
            return _node(h, x, down, up, alpha, down_bias, up_bias, number, small)
        if small and activation is None:
            return apply_low_rank(h, x, down, down_bias, up, up_bias, alpha)
    hidden = first_half(x, down, down_bias)
    if activation is not None:
        hidden = activation(hidden)
    if eager and small:
        return apply_project(h, hidden, up, up_bias, alpha)
    if small and hidden.dtype == up.dtype and not transforms_active():
        return project(h, hidden, up, up_bias, alpha)  # type: ignore[no-any-return]
    return _through_blend(h, hidden, up, up_bias, alpha)


def graft_body(h: Tensor, x: Tensor, body: nn.Module, alpha: Tensor) -> Tensor | None:
    """``h + alpha * body(x)`` in one call; None where the body must be called for itself.

    That is a body that :func:`offered` does not know, ``torch.compile`` (which fuses what it sees),
    a transform of ``torch.func``, and an ``h`` whose strides the call would not keep. Above
    ``SMALL_RANK_ALONE`` the bits are those of body and blend.

    Args:
        h: the host's activation, ``[..., width]``.
        x: what the seed reads, with the leading dimensions of ``h``.
        body: the seed's body.
        alpha: one element, on the device of ``h``.
    """
    if torch.compiler.is_compiling() or transforms_active() or not h.is_contiguous():
        return None
    layers = offered(body, h, x)
    if layers is None:
        return None
    down, down_bias, up, up_bias, activation = layers
    small = up.size(1) <= SMALL_RANK_ALONE
    if h.is_cuda:
        native.require_cuda()
    if _node is not None:
        number = _NUMBERS[activation]
        return _node(h, x, down, up, alpha, down_bias, up_bias, number, small)
    if not small:
        return None
    if activation is None:
        return apply_low_rank(h, x, down, down_bias, up, up_bias, alpha)
    hidden = activation(functional.linear(x, down, down_bias))
    return apply_project(h, hidden, up, up_bias, alpha)


def offered(body: nn.Module, h: Tensor, x: Tensor) -> TwoLayers | None:
    """The two layers that ``body`` is, where they are of the dtype of ``h`` and ``x``, with an
    activation between them that is known here, and nothing is autocast; else None."""
    offer: Callable[[], TwoLayers | None] | None = getattr(body, "two_layers", None)
    layers = None if offer is None or _autocasts(h) else offer()
    if layers is None or _number(layers.activation) is None:
        return None
    one_dtype = x.dtype == h.dtype == layers.down.dtype == layers.up.dtype
    return layers if one_dtype else None


def _number(activation: Activation | None) -> int | None:
    try:
        return _NUMBERS.get(activation)
    except TypeError:  # What cannot be hashed is none of them.
        return None


def _autocasts(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)


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
    units = by_candidate(hidden, up)
    weights = up.transpose(1, 2)
    if bias is None:
        delta = torch.bmm(units, weights)
    else:
        delta = torch.baddbmm(bias.unsqueeze(1), units, weights)
    shape = (len(up), *h.shape)
    return graft_blend(h.expand(shape), delta.view(shape).to(h.dtype), alpha)
