"""How far the activations of a host have moved: before and after something grew in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.activation import activation, turned
from esper.kasmina.isolation import HostGuard, uncompiled
from esper.kasmina.seed import evaluating
from esper.telemetry.layers import Layer, accumulating

EXAMPLES = 64
"""Examples of the batch whose activations are kept."""


def activations(
    model: nn.Module, layers: Sequence[Layer], forward: Callable[[], object]
) -> dict[str, Tensor]:
    """The output of each layer for the first ``EXAMPLES`` of what ``forward`` runs ``model`` on.

    One pass in evaluation mode without gradients; the host is left exactly as it was.
    """
    found: dict[str, Tensor] = {}

    def watch(layer: Layer) -> Any:
        def keep(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            y = turned(activation(output), layer.batch_axis)
            # A copy: what follows may write over the output.
            found[layer.name] = y[:EXAMPLES].clone()

        return layer.module.register_forward_hook(keep)

    with HostGuard(model, freeze=False), evaluating(model), uncompiled():
        handles = [watch(layer) for layer in layers]
        try:
            forward()
        finally:
            for handle in handles:
                handle.remove()
    return found


def cosines(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """The cosine between two activations of each layer that both have, over all their elements: 1
    where nothing has turned. Not a number for one that is zero; waits for the device."""
    found = {}
    for name, one in before.items():
        other = after.get(name)
        if other is not None and other.shape == one.shape:
            wide = accumulating(one.dtype)
            a, b = one.flatten().to(wide), other.flatten().to(wide)
            lengths = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
            found[name] = float(torch.dot(a, b) / lengths)
    return found
