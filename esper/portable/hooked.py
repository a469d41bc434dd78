"""Growth on a module whose arguments no graph can hold: ``*args``, ``**kwargs``, names alone.

The layers of Hugging Face's models are such modules. The module stays what it is, and a graph of
what has grown becomes its forward hook and, for the sake of its parameters, one of its children.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any

from torch import fx, nn

from esper.kasmina.graft import GraftPoint, host_of

GROWN = "grown"
"""The child of the module that computes what has grown on it."""

_PASSED = inspect.Parameter.POSITIONAL_OR_KEYWORD


def fits_a_graph(module: nn.Module) -> bool:
    """Whether all arguments of ``module`` can be passed by position and by name."""
    parameters = inspect.signature(module.forward).parameters.values()
    return all(parameter.kind is _PASSED for parameter in parameters)


class Addition(nn.Module):
    """As a forward hook of the host, what a graft point does behind it."""

    def __init__(self, point: GraftPoint) -> None:
        super().__init__()
        self.seeds = point.seeds
        self.training = point.training
        self._spans = set(point.span_inputs)
        self._input = point._input
        self._outputs = point.outputs

    def forward(self, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """The host's output with what has grown in its activation; nothing in here branches on
        what the host was given, so that it can be traced."""
        x = operator.add(args, (kwargs.get(self._input),))[0]
        h = output[0] if self._outputs else output
        for key, seed in self.seeds.items():
            h = seed(h, x if key in self._spans else None)
        return operator.add((h,), output[1:]) if self._outputs else h


def hook_in(point: GraftPoint, addition: fx.GraphModule, hooks: dict[str, Any]) -> nn.Module:
    """The host of ``point`` with ``addition`` behind it; ``hooks`` are the point's own, by kind,
    and stay outside of those that the host has."""
    host = host_of(point)
    if hasattr(host, GROWN):
        raise ValueError(f"it has an attribute {GROWN!r} of its own")
    host.add_module(GROWN, addition)
    host.register_forward_hook(addition, with_kwargs=True)
    for name, outer in hooks.items():
        inner = getattr(host, name)
        order = (outer, dict(inner)) if "pre" in name else (dict(inner), outer)
        inner.clear()
        for part in order:
            inner.update(part)
    return host
