"""The hand-made blueprints that ship with Esper."""

from __future__ import annotations

from esper.blueprints.ir import (
    Activation,
    Add,
    Attention,
    Blueprint,
    CausalDepthwise,
    Conv,
    Depthwise,
    Flatten,
    GlobalPool,
    Linear,
    LowRank,
    Modulate,
    Multiply,
    Reinterpret,
    Scale,
    Size,
    Tokens,
)

_OUT = Size("out")

LOW_RANK = Blueprint(
    name="low_rank",
    source="output",
    nodes=(LowRank(0, rank=Size("out", 1, 4), size=_OUT, init="zero"),),
)
"""A linear correction of an activation by itself, of a quarter of its rank."""

BOTTLENECK_MLP = Blueprint(
    name="bottleneck_mlp",
    source="output",
    nodes=(
        Linear(0, Size("out", 1, 2, least=8)),
        Activation(1, "relu"),
        Linear(2, _OUT, init="zero"),
    ),
)
"""A non-linear correction of an activation by itself."""

GATED_MLP = Blueprint(
    name="gated_mlp",
    source="output",
    nodes=(
        Linear(0, Size("out", 1, 2, least=8)),
        Activation(1, "silu"),
        Linear(0, Size("out", 1, 2, least=8)),
        Multiply(2, 3),
        Linear(4, _OUT, init="zero"),
    ),
)
"""A correction of an activation by products of two views of itself."""

SEPARABLE_CONV = Blueprint(
    name="separable_conv",
    source="output",
    nodes=(
        Reinterpret(0, "grid"),
        Depthwise(1, kernel=3),
        Activation(2, "relu"),
        Reinterpret(3, "features"),
        Linear(4, _OUT, init="zero"),
    ),
)
"""For planes: each channel looks at its neighbourhood, then the channels mix."""

SQUEEZE_EXCITE = Blueprint(
    name="squeeze_excite",
    source="output",
    nodes=(
        Reinterpret(0, "grid"),
        GlobalPool(1, "average"),
        Linear(2, Size("out", 1, 4, least=4)),
        Activation(3, "relu"),
        Linear(4, _OUT),
        Activation(5, "sigmoid"),
        Modulate(1, 6),
        Reinterpret(7, "features"),
        Scale(8, init="zero"),
    ),
)
"""For planes: how much a channel counts depends on what the whole plane shows (Hu et al. 2018)."""

CAUSAL_CONV = Blueprint(
    name="causal_conv",
    source="output",
    nodes=(
        Reinterpret(0, "signal"),
        CausalDepthwise(1, kernel=4),
        Activation(2, "silu"),
        Reinterpret(3, "features"),
        Linear(4, _OUT, init="zero"),
    ),
)
"""For sequences: each step looks at the three before it, and never at one to come."""

WIDEN = Blueprint(
    name="widen",
    source="span",
    nodes=(
        Linear(0, Size("out", 3, least=16)),
        Activation(1, "relu"),
        Linear(2, _OUT, init="zero"),
    ),
)
"""Parallel hidden units from the span's input to its output: what a wider layer would have."""

GATED_WIDEN = Blueprint(
    name="gated_widen",
    source="span",
    nodes=(
        Linear(0, Size("out", 2, least=12)),
        Activation(1, "silu"),
        Linear(0, Size("out", 2, least=12)),
        Multiply(2, 3),
        Linear(4, _OUT, init="zero"),
    ),
)
"""Parallel hidden units that multiply two views of the span's input."""

CONV1D_STACK = Blueprint(
    name="conv1d_stack",
    source="span",
    nodes=(
        Reinterpret(0, "signal"),
        Conv(1, Size("one", 25), kernel=5, stride=2),
        Activation(2, "relu"),
        Conv(3, Size("one", 25), kernel=3, stride=2),
        Activation(4, "relu"),
        Conv(5, Size("one", 25), kernel=3, stride=2),
        Activation(6, "relu"),
        Flatten(7),
        Linear(8, _OUT, init="zero"),
    ),
)
"""Reads the span's input as a signal: how an MLP comes by convolutions."""

CONV2D_STACK = Blueprint(
    name="conv2d_stack",
    source="span",
    nodes=(
        Reinterpret(0, "grid"),
        Conv(1, Size("one", 8), kernel=3),
        Activation(2, "relu"),
        Conv(3, Size("one", 16), kernel=3, stride=2),
        Activation(4, "relu"),
        Flatten(5),
        Linear(6, _OUT, init="zero"),
    ),
)
"""Reads the span's input as a square image (or acts on a plane)."""

ATTENTION = Blueprint(
    name="attention",
    source="span",
    nodes=(
        Tokens(0, count=8),
        Conv(1, Size("one", 16), kernel=1),
        Attention(2, heads=2),
        Add(2, 3),
        Activation(4, "gelu"),
        Flatten(5),
        Linear(6, _OUT, init="zero"),
    ),
)
"""Reads the span's input as eight tokens that attend to each other."""

LIBRARY: dict[str, Blueprint] = {
    blueprint.name: blueprint
    for blueprint in (
        LOW_RANK,
        BOTTLENECK_MLP,
        GATED_MLP,
        SEPARABLE_CONV,
        SQUEEZE_EXCITE,
        CAUSAL_CONV,
        WIDEN,
        GATED_WIDEN,
        CONV1D_STACK,
        CONV2D_STACK,
        ATTENTION,
    )
}
"""All of them by name."""
