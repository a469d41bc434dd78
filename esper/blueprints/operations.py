"""The closed set of operations as torch modules, and how their parameters begin."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper.blueprints import ir
from esper.blueprints.ir import BlueprintError, Node
from esper.blueprints.shapes import Step, Value

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
_CONVOLUTIONS: dict[str, type[nn.Conv1d | nn.Conv2d]] = {"signal": nn.Conv1d, "grid": nn.Conv2d}
_POOLS: dict[tuple[str, str], type[nn.Module]] = {
    ("average", "signal"): nn.AvgPool1d,
    ("average", "grid"): nn.AvgPool2d,
    ("maximum", "signal"): nn.MaxPool1d,
    ("maximum", "grid"): nn.MaxPool2d,
}


class LowRank(nn.Module):
    """``x -> up(down(x))`` on the last axis, without bias."""

    def __init__(self, width: int, rank: int, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False, device="meta", dtype=dtype)
        self.up = nn.Linear(rank, size, bias=False, device="meta", dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to ``[..., size]``."""
        result: Tensor = self.up(self.down(x))
        return result


class CausalDepthwise(nn.Conv1d):
    """Convolution of each channel with the positions before it and its own."""

    def __init__(self, width: int, kernel: int, dtype: torch.dtype) -> None:
        super().__init__(width, width, kernel, groups=width, device="meta", dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, length]`` to the same shape."""
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))


class Attention(nn.Module):
    """Multi-head self-attention over all positions.

    Written out: the fused kernels have no deterministic gradient on every device.
    """

    def __init__(self, value: Value, heads: int, dtype: torch.dtype) -> None:
        super().__init__()
        width, count = value.width, math.prod(value.shape[1:])
        self.heads = heads
        self.positions = nn.Parameter(torch.empty(count, width, device="meta", dtype=dtype))
        self.queries_keys_values = nn.Linear(
            width, 3 * width, bias=False, device="meta", dtype=dtype
        )
        self.join = nn.Linear(width, width, device="meta", dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, ...]`` to the same shape."""
        tokens = x.flatten(2).movedim(1, -1) + self.positions
        parts = self.queries_keys_values(tokens).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        joined: Tensor = self.join((weights @ v).movedim(1, 2).flatten(2))
        return joined.movedim(-1, 1).reshape(x.shape)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over axis 1 of a signal or grid."""

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, ...]`` to the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class GlobalPool(nn.Module):
    """Average or maximum over all positions."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self.average = function == "average"

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, ...]`` to ``[batch, channels]``."""
        flat = x.flatten(2)
        return flat.mean(-1) if self.average else flat.amax(-1)


class Reinterpret(nn.Module):
    """Move the feature axis to where the new kind has its channels, or back."""

    def __init__(self, value: Value, to: str) -> None:
        super().__init__()
        self.back = to == "features"
        lonely = value.kind == "features" and len(value.shape) == 1
        side = math.isqrt(value.width)
        self.view = ((1, side, side) if to == "grid" else (1, value.width)) if lonely else None

    def forward(self, x: Tensor) -> Tensor:
        """Features to a signal or grid, or a signal or grid to features."""
        if self.view is not None:
            return x.reshape(x.shape[0], *self.view)
        return x.movedim(1, -1) if self.back else x.movedim(-1, 1)


class Tokens(nn.Module):
    """Cut features into neighbouring pieces of equal length."""

    def __init__(self, value: Value, tokens: Value) -> None:
        super().__init__()
        self.shape = (tokens.shape[1], tokens.shape[0])
        self.missing = math.prod(tokens.shape) - value.width

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, width]`` to ``[batch, piece, count]``."""
        return F.pad(x, (0, self.missing)).reshape(x.shape[0], *self.shape).mT


class Add(nn.Module):
    """Sum of two tensors of one shape."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return x + y


class Multiply(nn.Module):
    """Product, element by element."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return x * y


class Modulate(nn.Module):
    """A factor for each feature of the last axis, or for each channel of axis 1, from a tensor."""

    def __init__(self, value: Value) -> None:
        super().__init__()
        positions = [1] * (len(value.shape) - 1)
        self.shape = (*positions, -1) if value.kind == "features" else (-1, *positions)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Any shape and ``[batch, width]`` to the shape of ``x``."""
        return x * y.reshape(y.shape[0], *self.shape)


class Scale(nn.Module):
    """A factor for each feature of the last axis, or for each channel of axis 1."""

    def __init__(self, value: Value, dtype: torch.dtype) -> None:
        super().__init__()
        trailing = 0 if value.kind == "features" else len(value.shape) - 1
        shape = (value.width, *([1] * trailing))
        self.weight = nn.Parameter(torch.empty(shape, device="meta", dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return x * self.weight


def make(step: Step, x: Value, dtype: torch.dtype) -> nn.Module:
    """The module of one node, its parameters on the meta device; ``x`` is its first operand."""
    module = _module(step, x, dtype)
    if isinstance(step.node, ir.Projection):
        module.requires_grad_(step.node.trainable)
    return module


def _module(step: Step, x: Value, dtype: torch.dtype) -> nn.Module:
    node, width = step.node, step.value.width
    match node:
        case ir.Linear():
            return nn.Linear(x.width, width, bias=node.bias, device="meta", dtype=dtype)
        case ir.LowRank():
            return LowRank(x.width, step.parameters // (x.width + width), width, dtype)
        case ir.Conv() | ir.Depthwise():
            return _CONVOLUTIONS[x.kind](
                x.width,
                width,
                node.kernel,
                stride=node.stride,
                padding=node.kernel // 2,
                groups=x.width if isinstance(node, ir.Depthwise) else 1,
                device="meta",
                dtype=dtype,
            )
        case ir.CausalDepthwise():
            return CausalDepthwise(width, node.kernel, dtype)
        case ir.Attention():
            return Attention(x, node.heads, dtype)
        case ir.Activation():
            return _ACTIVATIONS[node.function]()
        case ir.LayerNorm():
            norm = nn.LayerNorm if x.kind == "features" else ChannelNorm
            return norm(x.width, device="meta", dtype=dtype)
        case ir.Pool():
            return _POOLS[node.function, x.kind](node.window, node.stride)
        case ir.GlobalPool():
            return GlobalPool(node.function)
        case ir.Reinterpret():
            return Reinterpret(x, node.to)
        case ir.Tokens():
            return Tokens(x, step.value)
        case ir.Flatten():
            return nn.Flatten()
        case ir.Add():
            return Add()
        case ir.Multiply():
            return Multiply()
        case ir.Modulate():
            return Modulate(x)
        case ir.Scale():
            return Scale(x, dtype)


@torch.no_grad()
def initialise(node: Node, module: nn.Module, generator: torch.Generator) -> None:
    """Give a node's parameters their first values, drawn from ``generator`` alone.

    ``kaiming``: He's uniform bound ``sqrt(6 / fan_in)``, biases ``1 / sqrt(fan_in)``; ``normal``:
    variance ``1 / fan_in``, biases 0; ``zero``: all 0.
    """
    match node:
        case ir.LowRank():
            if not isinstance(module, LowRank):
                raise BlueprintError(f"got {type(module).__name__} for a low_rank node")
            _fill(module.down.weight, "normal", generator)
            _fill(module.up.weight, node.init, generator)
        case ir.Attention():
            for name, parameter in module.named_parameters():
                _fill(parameter, "zero" if name.endswith("bias") else "normal", generator)
        case ir.Linear() | ir.Conv() | ir.Depthwise() | ir.CausalDepthwise():
            fan_in = next(module.parameters())[0].numel()
            for name, parameter in module.named_parameters():
                _fill(parameter, node.init, generator, fan_in if name == "bias" else None)
        case ir.LayerNorm():
            for name, parameter in module.named_parameters():
                parameter.fill_(0.0 if name == "bias" else 1.0)
        case ir.Scale():
            for parameter in module.parameters():
                parameter.fill_(0.0 if node.init == "zero" else 1.0)
        case _:
            return


def _fill(
    parameter: Tensor, init: ir.Init, generator: torch.Generator, bias_of: int | None = None
) -> None:
    """Fill a weight, or the bias of a weight whose fan-in is ``bias_of``."""
    if init == "zero" or (init == "normal" and bias_of is not None):
        parameter.zero_()
        return
    # Drawn in float32 where the generator lives, so that the dtype and device of the slot do not
    # change which numbers are drawn.
    drawn = torch.empty(parameter.shape, dtype=torch.float32, device=generator.device)
    fan_in = bias_of or parameter[0].numel()
    if init == "normal":
        drawn.normal_(0.0, fan_in**-0.5, generator=generator)
    else:
        bound = (1.0 if bias_of else math.sqrt(6.0)) / math.sqrt(fan_in)
        drawn.uniform_(-bound, bound, generator=generator)
    parameter.copy_(drawn)
