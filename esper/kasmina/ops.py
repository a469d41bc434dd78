"""The operators of a graft: blending a seed into its slot, and the figures of an activation.

The kernels are compiled (``csrc/ops``); here stand the public functions, what the compiler of
torch needs to know about them (fakes), and their gradients. In eager mode the gradient is a node
of torch's C++ autograd (``csrc/autograd``) or, without the library that holds it, a plain
``autograd.Function`` around the bare kernel; either costs a fraction of the generic registration.
Under ``torch.compile`` the registered operator is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from esper.kasmina import native

native.load()
nodes = native.load_nodes()
"""The autograd nodes in C++; None where nodes in Python serve."""

_blend = torch.ops.esper.graft_blend.default
_bare_blend = _blend._op
_blend_backward = torch.ops.esper.graft_blend_backward.default
_stats = torch.ops.esper.slot_stats.default
_record = torch.ops.esper.record_stats.default
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_node: Callable[..., Tensor] | None = nodes and nodes.graft_blend.default._op
transforms_active = torch._C._are_functorch_transforms_active
"""Whether this is called inside ``torch.func.grad``, ``vmap`` or a relative of theirs."""

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def graft_blend(h: Tensor, delta: Tensor, alpha: Tensor) -> Tensor:
    """``h + alpha * delta``, and the very bits of ``h`` where alpha is 0.

    At alpha 0 nothing of ``delta`` is read: negative zeros of ``h`` stay and NaN in ``delta``
    does not reach the host. bfloat16 is computed in float32 and rounded once.

    Gradients: ``grad`` to ``h``, ``alpha * grad`` to ``delta`` and ``sum(grad * delta)`` to
    ``alpha`` (accumulated in float64, the same for every thread count), at alpha 0 too.
    Differentiable any number of times, and within ``torch.func.grad`` and ``vmap``.

    Args:
        h: the host's activation; float32, float64 or bfloat16, any shape and strides.
        delta: what the seed adds; shape, dtype and device of ``h``.
        alpha: one element of any floating dtype, on the device of ``h``.

    Returns:
        A new tensor of the shape and dtype of ``h``, laid out like ``torch.empty_like(h)``.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit; the message names them.
        NativeLibraryError: ``h`` is on a CUDA device and the CUDA library is missing.
    """
    if torch.compiler.is_compiling():
        return _blend(h, delta, alpha)  # type: ignore[no-any-return]
    if h.is_cuda:
        native.require_cuda()
    if transforms_active():
        return _TransformedBlend.apply(h, delta, alpha)  # type: ignore[no-any-return, no-untyped-call]
    if _node is not None:
        return _node(h, delta, alpha)
    learns = h.requires_grad or delta.requires_grad or alpha.requires_grad
    # A derivative taken forward must be refused, which the node does, and not be dropped.
    if (learns and torch.is_grad_enabled()) or forward_ad._current_level >= 0:
        return _apply_blend(h, delta, alpha)
    with _BelowAutograd():
        return _bare_blend(h, delta, alpha)  # type: ignore[no-any-return]


def slot_stats(x: Tensor, axis: int = -1) -> Tensor:
    """Five figures of every feature of an activation, in one pass; not differentiable.

    Rows of the result: mean, variance (population) and largest absolute value of the finite
    elements (NaN where there are none); fraction of all elements that are zero (NaN where there
    are no elements); number of elements that are NaN or infinite. Sums are shifted by a first
    element, accumulated in float64 block by block and merged after Chan, Golub and LeVeque
    (1979); the result does not depend on the thread count.

    Args:
        x: float32, float64 or bfloat16, at least one dimension, any strides.
        axis: the feature axis; negative counts from the end.

    Returns:
        float64 of shape ``[5, x.shape[axis]]`` on the device of ``x``.

    Raises:
        RuntimeError: dtype, number of dimensions or axis do not fit; the message names them.
        NativeLibraryError: ``x`` is on a CUDA device and the CUDA library is missing.
    """
    if not torch.compiler.is_compiling() and x.is_cuda:
        native.require_cuda()
    return _stats(x.detach(), axis)  # type: ignore[no-any-return]


def record_stats(xs: list[Tensor], table: Tensor, rows: list[int]) -> None:
    """Write five figures of each tensor, as one feature, into its row of ``table``.

    The columns are the rows of :func:`slot_stats`, over all elements of a tensor of at most 16,384,
    and over four evenly spaced blocks of 4,096 of a larger one. Not differentiable; nothing waits
    for the device. A block is summed in float32 (in float64 where float32 would overflow or vanish,
    and for a float64 tensor), shifted by its first finite element; blocks are merged in float64.

    Args:
        xs: float32, float64 or bfloat16, any shapes and strides.
        table: float64 ``[rows, 5]``, contiguous, on the device of the tensors.
        rows: one for each tensor, from 0.

    Raises:
        RuntimeError: an argument does not fit; the message names it.
        NativeLibraryError: ``table`` is on a CUDA device and the CUDA library is missing.
    """
    if table.is_cuda:
        native.require_cuda()
    with _BelowAutograd():
        _record(xs, table, rows)


class _GraftBlend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, delta: Tensor, alpha: Tensor) -> Tensor:
        with _BelowAutograd():
            out = _bare_blend(h, delta, alpha)
        # Only the gradient of alpha needs delta: without it the seed's output can be freed.
        if alpha.requires_grad:
            ctx.save_for_backward(delta, alpha)
        else:
            ctx.save_for_backward(alpha)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return _blend_gradients(ctx, grad)


# What Function.apply adds to this is a look for transforms of torch.func, and graft_blend has
# looked: at the smallest sizes that is a tenth of the call.
_apply_blend: Callable[..., Tensor] = super(torch.autograd.Function, _GraftBlend).apply


class _TransformedBlend(torch.autograd.Function):
    """The blend inside ``torch.func.grad``, ``vmap`` and their relatives."""

    @staticmethod
    def forward(h: Tensor, delta: Tensor, alpha: Tensor) -> Tensor:
        with _BelowAutograd():
            return _bare_blend(h, delta, alpha)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1], inputs[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        delta, alpha = ctx.saved_tensors
        to_alpha = (grad.double() * delta.double()).sum().to(alpha.dtype)
        return grad, grad * alpha.reshape(()), to_alpha.reshape(alpha.shape)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], h: Tensor, delta: Tensor, alpha: Tensor
    ) -> tuple[Tensor, int]:
        tensors = (h, delta, alpha)
        batched = [
            t.unsqueeze(0).expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(tensors, in_dims, strict=True)
        ]
        if in_dims[2] is None:
            return graft_blend(batched[0], batched[1], alpha), 0
        # One call knows one alpha.
        return torch.stack([graft_blend(*one) for one in zip(*batched, strict=True)]), 0


def _setup_blend(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    _, delta, alpha = inputs
    if ctx.needs_input_grad[2]:
        ctx.save_for_backward(delta, alpha)
    else:
        ctx.save_for_backward(alpha)


def _blend_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    saved = ctx.saved_tensors
    alpha = saved[-1]
    if len(saved) == 2:
        to_delta, to_alpha = _blend_backward(grad, saved[0], alpha)
        return grad, to_delta, to_alpha
    # Without dimensions alpha takes part in no type promotion.
    plain = alpha.dtype == grad.dtype and alpha.dim() <= grad.dim()
    return grad, grad * (alpha if plain else alpha.view(())), None


def _setup_blend_backward(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _blend_backward_gradients(
    ctx: Any, to_delta: Tensor, to_alpha: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``(alpha * grad, sum(grad * delta))`` in plain torch, so of any order."""
    grad, delta, alpha = ctx.saved_tensors
    scale = alpha.reshape(())
    weight = to_alpha.reshape(())
    through_grad = to_delta * scale + delta * weight
    through_alpha = (to_delta.double() * grad.double()).sum().to(alpha.dtype).reshape(alpha.shape)
    return through_grad, grad * weight, through_alpha


def _fake_blend(h: Tensor, delta: Tensor, alpha: Tensor) -> Tensor:
    _check("graft_blend", "h", h, "delta", delta, alpha)
    return torch.empty_like(h)


def _fake_blend_backward(grad: Tensor, delta: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    _check("graft_blend_backward", "delta", delta, "grad", grad, alpha)
    return torch.empty_like(delta), torch.empty_like(alpha)


def _fake_stats(x: Tensor, axis: int) -> Tensor:
    _require(x.dtype in _DTYPES, f"slot_stats: got x of dtype {x.dtype}, wanted one of {_DTYPES}")
    _require(
        -x.dim() <= axis < x.dim(),
        f"slot_stats: got axis {axis} for x of shape {list(x.shape)}, "
        f"wanted {-x.dim()} to {x.dim() - 1}",
    )
    return x.new_empty((5, x.shape[axis]), dtype=torch.float64)


def _fake_record(xs: list[Tensor], table: Tensor, rows: list[int]) -> None:
    for x in xs:
        _require(
            x.dtype in _DTYPES,
            f"record_stats: got a tensor of dtype {x.dtype}, wanted one of {_DTYPES}",
        )


def _check(op: str, name: str, model: Tensor, twin_name: str, twin: Tensor, alpha: Tensor) -> None:
    _require(
        model.dtype in _DTYPES,
        f"{op}: got {name} of dtype {model.dtype}, wanted one of {_DTYPES}",
    )
    _require(
        twin.shape == model.shape,
        f"{op}: got {twin_name} of shape {list(twin.shape)}, wanted {list(model.shape)} "
        f"(that of {name})",
    )
    _require(
        twin.dtype == model.dtype,
        f"{op}: got {twin_name} of dtype {twin.dtype}, wanted {model.dtype} (that of {name})",
    )
    _require(
        alpha.numel() == 1 and alpha.is_floating_point(),
        f"{op}: got alpha of shape {list(alpha.shape)} and dtype {alpha.dtype}, "
        "wanted one element of a floating dtype",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise RuntimeError(f"esper::{message}")


torch.library.register_fake("esper::graft_blend", _fake_blend)
torch.library.register_fake("esper::graft_blend_backward", _fake_blend_backward)
torch.library.register_fake("esper::slot_stats", _fake_stats)
torch.library.register_fake("esper::record_stats", _fake_record)
torch.library.register_autograd("esper::graft_blend", _blend_gradients, setup_context=_setup_blend)
torch.library.register_autograd(
    "esper::graft_blend_backward", _blend_backward_gradients, setup_context=_setup_blend_backward
)
