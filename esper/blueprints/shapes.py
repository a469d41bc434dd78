"""Shape inference: what each node of a blueprint becomes in one slot, and why it may not fit.

Needs no torch: a controller can ask which blueprints fit a slot without building any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from esper.blueprints import ir
from esper.blueprints.ir import Blueprint, BlueprintError, Node, Size

MAX_WIDTH = 1 << 20
MAX_PARAMETERS = 1 << 28
MAX_TOKENS = 256
"""Attention compares each position with each: their number is bounded."""

Kind = Literal["features", "signal", "grid"]


@dataclass(frozen=True)
class Value:
    """Kind and shape, without the batch dimension, of a value inside a blueprint."""

    kind: Kind
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """Length of the feature axis (features) or number of channels (signal, grid)."""
        return self.shape[-1] if self.kind == "features" else self.shape[0]

    def with_width(self, width: int) -> Value:
        """The same value with another number of features or channels."""
        if self.kind == "features":
            return Value(self.kind, (*self.shape[:-1], width))
        return Value(self.kind, (width, *self.shape[1:]))

    def __str__(self) -> str:
        return f"{self.kind} of shape {self.shape}"


@dataclass(frozen=True)
class Step:
    """One node in one slot: the value that it yields and the parameters that it adds."""

    node: Node
    value: Value
    parameters: int


def plan(
    blueprint: Blueprint,
    in_shape: tuple[int, ...],
    in_axis: int,
    out_shape: tuple[int, ...],
    out_axis: int,
) -> tuple[Step, ...]:
    """Every node of ``blueprint`` resolved for a slot that reads ``in_shape`` and adds to
    ``out_shape`` (per example; the axes name the feature dimension, counted from 0).

    Positions of a slot may be steps in time, and a host may not look ahead: a seed that did
    would win every comparison and be worth nothing. Which hosts are causal cannot be known from
    shapes, so nodes that mix positions, the causal ones excepted, fit only where there are none
    (``[width]``) and on planes with their channels first (``[channels, height, width]``).

    Raises ``BlueprintError`` with the reason when the blueprint does not fit.
    """
    source, target = entry(in_shape, in_axis), entry(out_shape, out_axis)
    if blueprint.source == "output" and source != target:
        raise BlueprintError(
            f"it reads a slot's own output, but the slot goes from {in_shape} to {out_shape}"
        )
    timed = not _timeless(in_shape, in_axis)
    widths = {"in": source.width, "out": target.width, "one": 1}
    values = [source]
    steps = []
    for position, node in enumerate(blueprint.nodes):
        try:
            if timed and _mixes_positions(node):
                raise BlueprintError(
                    f"it mixes positions, and those of {in_shape} may be steps in time"
                )
            step = _resolve(node, [values[i] for i in ir.operands(node)], widths)
        except BlueprintError as error:
            raise BlueprintError(f"node {position} ({_op(node)}): {error}") from None
        values.append(step.value)
        steps.append(step)
    if values[-1] != target:
        raise BlueprintError(f"it yields {values[-1]}, the slot wants {target}")
    total = sum(step.parameters for step in steps)
    if total > MAX_PARAMETERS:
        raise BlueprintError(f"it has {total} parameters, the limit is {MAX_PARAMETERS}")
    return tuple(steps)


def entry(shape: tuple[int, ...], axis: int) -> Value:
    """The value that an activation of ``shape`` is to a blueprint: its feature axis goes last."""
    if not shape or any(n < 1 for n in shape):
        raise BlueprintError(f"got the shape {shape}, wanted at least one dimension, none empty")
    if not 0 <= axis < len(shape):
        raise BlueprintError(f"got feature axis {axis}, wanted 0 to {len(shape) - 1} for {shape}")
    return Value("features", (*shape[:axis], *shape[axis + 1 :], shape[axis]))


def _timeless(shape: tuple[int, ...], axis: int) -> bool:
    """Whether an activation has no positions, or those of a plane: none that could be in time."""
    return len(shape) == 1 or (len(shape) == 3 and axis == 0)


def _mixes_positions(node: Node) -> bool:
    """Whether what ``node`` yields at a position depends on later ones."""
    match node:
        case ir.Conv() | ir.Depthwise():
            return node.kernel > 1
        case ir.Pool():
            return node.window > 1
        case _:
            return isinstance(node, ir.GlobalPool | ir.Flatten | ir.Attention)


def _op(node: Node) -> str:
    return str(type(node).__struct_config__.tag)


def _size(size: Size, widths: dict[str, int]) -> int:
    result = max(size.least, widths[size.of] * size.times // size.over)
    if result > MAX_WIDTH:
        raise BlueprintError(f"got a width of {result}, the limit is {MAX_WIDTH}")
    return result


def _resolve(node: Node, values: list[Value], widths: dict[str, int]) -> Step:
    x = values[0]
    match node:
        case ir.Linear():
            _wants(x, "features")
            size = _size(node.size, widths)
            return Step(node, x.with_width(size), size * (x.width + node.bias))
        case ir.LowRank():
            _wants(x, "features")
            size, rank = _size(node.size, widths), _size(node.rank, widths)
            return Step(node, x.with_width(size), rank * (x.width + size))
        case ir.Conv():
            size = _size(node.size, widths)
            swept = _sweep(x, node.kernel, node.stride, node.kernel // 2)
            window = node.kernel ** (len(x.shape) - 1)
            return Step(node, swept.with_width(size), size * (x.width * window + 1))
        case ir.Depthwise():
            window = node.kernel ** (len(x.shape) - 1)
            swept = _sweep(x, node.kernel, node.stride, node.kernel // 2)
            return Step(node, swept, x.width * (window + 1))
        case ir.CausalDepthwise():
            _wants(x, "signal")
            return Step(node, x, x.width * (node.kernel + 1))
        case ir.Attention():
            return Step(node, x, _attention(x, node.heads))
        case ir.Pool():
            return Step(node, _sweep(x, node.window, node.stride, 0), 0)
        case ir.GlobalPool():
            _wants(x, "signal", "grid")
            return Step(node, Value("features", (x.width,)), 0)
        case ir.Reinterpret():
            return Step(node, _reinterpret(x, node.to), 0)
        case ir.Tokens():
            return Step(node, _tokens(x, node.count), 0)
        case ir.Flatten():
            _wants(x, "signal", "grid")
            return Step(node, Value("features", (math.prod(x.shape),)), 0)
        case ir.Add() | ir.Multiply():
            if values[0] != values[1]:
                raise BlueprintError(f"got {values[0]} and {values[1]}, wanted two alike")
            return Step(node, x, 0)
        case ir.Modulate():
            if values[1] != Value("features", (x.width,)):
                raise BlueprintError(f"got {x} and {values[1]}, wanted a factor for each feature")
            return Step(node, x, 0)
        case ir.LayerNorm():
            return Step(node, x, 2 * x.width)
        case ir.Scale():
            return Step(node, x, x.width)
        case ir.Activation():
            return Step(node, x, 0)


def _wants(x: Value, *kinds: Kind) -> None:
    if x.kind not in kinds:
        raise BlueprintError(f"got {x}, wanted {' or '.join(kinds)}")


def _sweep(x: Value, window: int, stride: int, padding: int) -> Value:
    """The value after a window has been swept over the positions of a signal or grid."""
    _wants(x, "signal", "grid")
    positions = []
    for length in x.shape[1:]:
        if length + 2 * padding < window:
            raise BlueprintError(f"got {x}, too short for a window of {window}")
        positions.append((length + 2 * padding - window) // stride + 1)
    return Value(x.kind, (x.width, *positions))


def _attention(x: Value, heads: int) -> int:
    """The parameters of attention over ``x``: learned positions, three maps in and one out."""
    _wants(x, "signal", "grid")
    positions = math.prod(x.shape[1:])
    if positions > MAX_TOKENS:
        raise BlueprintError(f"got {positions} positions to attend to, the limit is {MAX_TOKENS}")
    if x.width % heads:
        raise BlueprintError(f"got {x.width} channels, wanted a multiple of {heads} heads")
    return positions * x.width + 4 * x.width**2 + x.width


def _tokens(x: Value, count: int) -> Value:
    _wants(x, "features")
    if len(x.shape) > 1 or x.width < count:
        raise BlueprintError(f"got {x}, wanted {count} or more features of one position")
    return Value("signal", (math.ceil(x.width / count), count))


def _reinterpret(x: Value, to: Kind) -> Value:
    if to == "features":
        _wants(x, "signal", "grid")
        return Value("features", (*x.shape[1:], x.width))
    _wants(x, "features")
    positions = x.shape[:-1]
    if len(positions) == (1 if to == "signal" else 2):
        return Value(to, (x.width, *positions))
    if positions:
        raise BlueprintError(f"got {x}, which cannot be read as a {to}")
    if to == "signal":
        return Value(to, (1, x.width))
    side = math.isqrt(x.width)
    if side * side != x.width:
        raise BlueprintError(f"got {x.width} features, wanted a square number to read as a grid")
    return Value(to, (1, side, side))
