"""Watching which modules a forward pass calls, and with what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.activation import activation, given, input_name
from esper.kasmina.graft import host_of


@dataclass
class Call:
    """What one module was seen doing in a forward pass, in its latest call.

    ``outputs`` is the length of the tuple that the module returned, 0 where it returned none.
    ``autocast`` tells that it may have computed in another dtype than its parameters have.
    """

    order: int
    count: int = 0
    input: Tensor | None = None
    output: Tensor | None = None
    outputs: int = 0
    autocast: bool = False


@contextmanager
def tracing(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Call]]:
    """Collect the calls of ``modules``, by their names, in the order in which they return."""
    calls: dict[str, Call] = {}

    def watch(name: str, first: str | None) -> Callable[..., None]:
        def record(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
        ) -> None:
            call = calls.setdefault(name, Call(order=len(calls)))
            call.count += 1
            call.input = _tensor(given(args, kwargs, first))
            call.output = _tensor(activation(output) if output != () else None)
            call.outputs = len(output) if isinstance(output, tuple) else 0
            device = "cpu" if call.output is None else call.output.device.type
            call.autocast = torch.is_autocast_enabled(device)

        return record

    handles = [
        module.register_forward_hook(watch(name, input_name(host_of(module))), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _tensor(value: object) -> Tensor | None:
    return value if isinstance(value, Tensor) else None
