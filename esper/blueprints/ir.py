"""The blueprint IR: the recipe of a seed as data, a typed graph over a closed set of operations.

A blueprint holds no code and no absolute widths: sizes are ratios of the widths of the slot, so
one recipe serves every slot that it fits. Value 0 is what the slot hands in, value ``i + 1`` the
result of node ``i``, and the last node's value is what the seed adds to the host. Values have a
kind: ``features`` (positions..., width), ``signal`` (channels, length) or ``grid`` (channels,
height, width), each without the batch dimension; ``esper.blueprints.shapes`` infers them.

What travels is the canonical bytes (JSON with sorted keys, every field present, no white space);
the id of a blueprint is their SHA-256.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec

MAX_BYTES = 64 * 1024
"""Canonical bytes of a blueprint are never longer; longer input is refused before decoding."""

MAX_NODES = 64

Index = Annotated[int, msgspec.Meta(ge=0, le=MAX_NODES)]
Part = Annotated[int, msgspec.Meta(ge=1, le=1024)]
Least = Annotated[int, msgspec.Meta(ge=1, le=65536)]
Window = Annotated[int, msgspec.Meta(ge=1, le=64)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"\A[a-z][a-z0-9_]*\Z")]
Init = Literal["kaiming", "normal", "zero"]


class BlueprintError(ValueError):
    """A blueprint that is malformed, or that does not fit the slot it was asked for."""


class _Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Size(_Data, frozen=True):
    """``max(least, base * times // over)``, where base is the slot's input width, its output
    width, or 1 for a constant."""

    of: Literal["in", "out", "one"]
    times: Part = 1
    over: Part = 1
    least: Least = 1


class Linear(_Data, frozen=True, tag_field="op", tag="linear"):
    """Affine map of the feature axis, at each position."""

    x: Index
    size: Size
    bias: bool = True
    init: Init = "kaiming"
    trainable: bool = True


class LowRank(_Data, frozen=True, tag_field="op", tag="low_rank"):
    """``x -> U V x`` on the feature axis; ``init`` is that of ``U``, ``V`` starts random."""

    x: Index
    rank: Size
    size: Size
    init: Init = "kaiming"
    trainable: bool = True


class Conv(_Data, frozen=True, tag_field="op", tag="conv"):
    """Convolution over a signal (1-D) or a grid (2-D), zero-padded by ``kernel // 2``."""

    x: Index
    size: Size
    kernel: Window
    stride: Window = 1
    init: Init = "kaiming"
    trainable: bool = True


class Depthwise(_Data, frozen=True, tag_field="op", tag="depthwise"):
    """Convolution of each channel by itself over a signal or a grid, padded by ``kernel // 2``."""

    x: Index
    kernel: Window
    stride: Window = 1
    init: Init = "kaiming"
    trainable: bool = True


class CausalDepthwise(_Data, frozen=True, tag_field="op", tag="causal_depthwise"):
    """Convolution of each channel of a signal by itself that sees a position and the
    ``kernel - 1`` before it, never one behind it; padded at the front, so the length stays."""

    x: Index
    kernel: Window
    init: Init = "kaiming"
    trainable: bool = True


class Attention(_Data, frozen=True, tag_field="op", tag="attention"):
    """Self-attention of all positions of a signal or grid, with learned positions.

    With ``x + p``, ``p`` the learned positions, each of the ``heads`` gives
    ``softmax(q k' / sqrt(d)) v`` (Vaswani et al. 2017); an affine map joins them.
    """

    x: Index
    heads: Window


class Activation(_Data, frozen=True, tag_field="op", tag="activation"):
    """A function of each element."""

    x: Index
    function: Literal["relu", "gelu", "silu", "tanh", "sigmoid"]


class LayerNorm(_Data, frozen=True, tag_field="op", tag="layer_norm"):
    """Layer normalisation with scale and shift over the feature (or channel) axis."""

    x: Index


class Pool(_Data, frozen=True, tag_field="op", tag="pool"):
    """Average or maximum over windows of a signal or grid; a short tail is dropped."""

    x: Index
    function: Literal["average", "maximum"]
    window: Window
    stride: Window


class GlobalPool(_Data, frozen=True, tag_field="op", tag="global_pool"):
    """Average or maximum over all positions of a signal or grid, to features."""

    x: Index
    function: Literal["average", "maximum"]


class Reinterpret(_Data, frozen=True, tag_field="op", tag="reinterpret"):
    """Read a value as another kind.

    ``signal``: features of one position become a signal of one channel, features of a sequence
    a signal with a channel for each feature. ``grid``: features of one position whose width is
    a square number become a square grid of one channel, features of a plane a grid with a
    channel for each. ``features``: a signal or grid becomes features at its positions.
    """

    x: Index
    to: Literal["signal", "grid", "features"]


class Tokens(_Data, frozen=True, tag_field="op", tag="tokens"):
    """Features of one position, cut into ``count`` neighbouring pieces of equal length: a signal
    with a position for each piece. The last one is filled up with zeros."""

    x: Index
    count: Window


class Flatten(_Data, frozen=True, tag_field="op", tag="flatten"):
    """All elements of a signal or grid as the features of one position."""

    x: Index


class Add(_Data, frozen=True, tag_field="op", tag="add"):
    """Sum of two values of one kind and shape."""

    x: Index
    y: Index


class Multiply(_Data, frozen=True, tag_field="op", tag="multiply"):
    """Product, element by element, of two values of one kind and shape."""

    x: Index
    y: Index


class Modulate(_Data, frozen=True, tag_field="op", tag="modulate"):
    """``x`` with each feature (or channel), at all positions, times that feature of ``y``, which
    are features of one position."""

    x: Index
    y: Index


class Scale(_Data, frozen=True, tag_field="op", tag="scale"):
    """A learned factor for each feature (or channel), at first 0 or 1."""

    x: Index
    init: Literal["zero", "one"] = "one"
    trainable: bool = True


Projection = Linear | LowRank | Conv | Depthwise | CausalDepthwise | Scale
Node = (
    Linear
    | LowRank
    | Conv
    | Depthwise
    | CausalDepthwise
    | Attention
    | Activation
    | LayerNorm
    | Pool
    | GlobalPool
    | Reinterpret
    | Tokens
    | Flatten
    | Add
    | Multiply
    | Modulate
    | Scale
)
Nodes = Annotated[tuple[Node, ...], msgspec.Meta(min_length=1, max_length=MAX_NODES)]


class Blueprint(_Data, frozen=True):
    """The recipe of a seed.

    ``source`` tells what the seed reads: ``output`` the activation that it adds to, ``span`` the
    input of an earlier (or the same) module. Validated where it is made: raises
    ``BlueprintError`` when the graph is not well formed.
    """

    name: Name
    source: Literal["output", "span"]
    nodes: Nodes

    def __post_init__(self) -> None:
        _check_graph(self)

    def canonical(self) -> bytes:
        """The bytes that stand for this blueprint, the same on every machine."""
        return _encode(self)

    @property
    def id(self) -> str:
        """SHA-256 of the canonical bytes, in hex."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @property
    def starts_silent(self) -> bool:
        """Whether a fresh seed changes nothing, to the bit, until it has learnt something."""
        last = self.nodes[-1]
        return isinstance(last, Projection) and last.init == "zero"

    @property
    def learns(self) -> bool:
        """Whether any of its parameters is trainable."""
        return any(
            isinstance(node, LayerNorm | Attention)
            or (isinstance(node, Projection) and node.trainable)
            for node in self.nodes
        )

    @property
    def affine(self) -> bool:
        """Whether it is one affine map of the features, the same at each position."""
        return all(isinstance(node, Linear | LowRank | Scale | Add) for node in self.nodes)


def operands(node: Node) -> tuple[int, ...]:
    """The values that a node reads."""
    return (node.x, node.y) if isinstance(node, Add | Multiply | Modulate) else (node.x,)


def from_bytes(data: bytes) -> Blueprint:
    """The blueprint whose canonical bytes are ``data``; raises ``BlueprintError`` for any other
    bytes, those of the same blueprint written in another way included."""
    if len(data) > MAX_BYTES:
        raise BlueprintError(f"blueprint: got {len(data)} bytes, wanted at most {MAX_BYTES}")
    try:
        blueprint = msgspec.json.decode(data, type=Blueprint)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        cause = error.__cause__
        raise BlueprintError(str(cause if isinstance(cause, BlueprintError) else error)) from None
    if blueprint.canonical() != data:
        raise BlueprintError(f"blueprint {blueprint.name}: the bytes are not in canonical form")
    return blueprint


class _Fields(_Data, frozen=True):
    """A blueprint's fields alone: a struct made from Python is unchecked until it is decoded."""

    name: Name
    source: Literal["output", "span"]
    nodes: Nodes


def _encode(blueprint: Blueprint) -> bytes:
    return msgspec.json.encode(blueprint, order="sorted")


def _check_graph(blueprint: Blueprint) -> None:
    try:
        msgspec.json.decode(_encode(blueprint), type=_Fields)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
        raise BlueprintError(f"blueprint {blueprint.name!r}: {error}") from None
    used: set[int] = set()
    for position, node in enumerate(blueprint.nodes):
        for operand in operands(node):
            if operand > position:
                raise BlueprintError(
                    f"blueprint {blueprint.name}: node {position} reads value {operand}, "
                    f"wanted one of 0 to {position}"
                )
            used.add(operand)
    unread = sorted(set(range(len(blueprint.nodes))) - used)
    if unread:
        raise BlueprintError(f"blueprint {blueprint.name}: nothing reads value {unread[0]}")
    _check_ending(blueprint)


def _check_ending(blueprint: Blueprint) -> None:
    last = blueprint.nodes[-1]
    if not isinstance(last, Projection):
        raise BlueprintError(
            f"blueprint {blueprint.name}: got {type(last).__name__} as the last node, wanted a "
            "projection (linear, low_rank, scale or a convolution)"
        )
    if blueprint.learns and not (blueprint.starts_silent and last.trainable):
        raise BlueprintError(
            f"blueprint {blueprint.name}: the last node must be trainable and have init 'zero', "
            "so that a fresh seed changes nothing"
        )
    if not blueprint.learns and blueprint.starts_silent:
        raise BlueprintError(
            f"blueprint {blueprint.name}: nothing trains and the last node is zero, so the seed "
            "could never change anything"
        )
