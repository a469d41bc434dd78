"""Watching which modules a forward pass calls, and with what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from esper.kasmina.activation import activation, given, input_name
from esper.kasmina.graft import host_of


@dataclass
class Call:
    """What one module was seen doing in a forward pass, in its latest call.

    ``outputs`` is the length of the tuple that the module returned, 0 where it returned none.
    ``packed`` tells that it was given a packed sequence.
    ``autocast`` tells that it may have computed in another dtype than its parameters have.
    """

    order: int
    count: int = 0
    input: Tensor | None = None
    output: Tensor | None = None
    outputs: int = 0
    packed: bool = False
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
            x = given(args, kwargs, first)
            call.input = _tensor(x)
            call.packed = isinstance(x, PackedSequence)
            call.output = _tensor(activation(output) if _may_start_with_one(output) else None)
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


def _may_start_with_one(output: object) -> bool:
    """Whether an activation can be taken out of ``output`` and another put in its place: a tuple
    of a type of its own could not be made again."""
    return not isinstance(output, tuple) or (type(output) is tuple and len(output) > 0)


def _tensor(value: object) -> Tensor | None:
    return value if isinstance(value, Tensor) else None
