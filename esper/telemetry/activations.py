"""What reaches the layers of a host: statistics of activations, one pass over each.

Attached for the sampled pass only; between two samples a host carries no hook.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from esper.kasmina import ops
from esper.kasmina.activation import given, input_name, turned
from esper.kasmina.graft import host_of
from esper.kasmina.isolation import HostGuard, uncompiled
from esper.kasmina.seed import evaluating
from esper.kasmina.signature import Slot


@dataclass(frozen=True)
class InputStatistics:
    """The features that a module was given in one pass.

    ``dead`` features were zero in every example and position, ``silent`` ones did not vary;
    ``largest`` is the largest finite magnitude, ``not_finite`` counts elements.
    """

    features: int
    dead: int
    silent: int
    largest: float
    not_finite: int


def measure_inputs(
    model: nn.Module, slots: Iterable[Slot], forward: Callable[[], object]
) -> dict[str, InputStatistics]:
    """Statistics of what reaches each module at which a span starts, by the module's name.

    ``forward`` runs ``model`` once, here in evaluation mode and without gradients; the host is
    left exactly as it was.
    """
    starts = {slot.start: slot for slot in slots if slot.source == "span"}
    found: dict[str, InputStatistics] = {}

    def watch(slot: Slot, module: nn.Module) -> RemovableHandle:
        first = input_name(host_of(module))

        def measure(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = turned(given(args, kwargs, first), slot.batch_axis)
            found[slot.start] = _summary(ops.slot_stats(x, slot.in_axis + 1))

        return module.register_forward_pre_hook(measure, with_kwargs=True)

    with HostGuard(model, freeze=False), evaluating(model), uncompiled():
        handles = [watch(slot, model.get_submodule(name)) for name, slot in starts.items()]
        try:
            forward()
        finally:
            for handle in handles:
                handle.remove()
    return found


def _summary(statistics: Tensor) -> InputStatistics:
    """Count over the features of ``slot_stats``: ``statistics`` is ``[5, features]``."""
    _, variance, magnitude, zeros, not_finite = statistics
    return InputStatistics(
        features=statistics.shape[1],
        dead=int(torch.count_nonzero(zeros == 1.0)),
        silent=int(torch.count_nonzero(variance == 0.0)),
        largest=float(magnitude.max()),
        not_finite=int(not_finite.sum()),
    )
