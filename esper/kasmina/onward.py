"""The way from one slot to the next, as modules that can be run by themselves.

A pass is watched once. From the slot's activation on, each next step is the module that is given
the very tensor of the step before, and nothing else that is computed, up to a module that carries
an output slot. Where the host computes something between two modules (an ``F.relu``, a residual
sum), or gives one of them more than that tensor (a mask), there is no such way, and the reason is
told: what cannot be run by itself exactly as the host runs it is not guessed at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from esper.kasmina.activation import activation
from esper.kasmina.errors import ObjectiveError
from esper.kasmina.graft import GraftPoint, host_of, module_at
from esper.kasmina.isolation import HostGuard, uncompiled
from esper.kasmina.signature import Slot

_PLAIN = (type(None), bool, int, float, str)


class _Argument(Enum):
    """Stands in recorded arguments where the tensor of the step before goes."""

    FLOW = auto()


@dataclass(frozen=True)
class Step:
    """One module on the way, and what the host gives it besides the tensor."""

    path: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def run(self, model: nn.Module, h: Tensor) -> Tensor:
        """The module's activation on ``h``."""
        args = [h if value is _Argument.FLOW else value for value in self.args]
        kwargs = {
            name: h if value is _Argument.FLOW else value for name, value in self.kwargs.items()
        }
        value: Tensor = activation(module_at(model, self.path)(*args, **kwargs))
        return value


@dataclass(frozen=True)
class Onward:
    """The modules from a slot's activation to that of the output slot ``end``, which follows."""

    end: Slot
    steps: tuple[Step, ...]

    def run(self, model: nn.Module, h: Tensor) -> Tensor:
        """The activation at ``end`` where that of the slot is ``h``, both as the host has them.

        Raises:
            ObjectiveError: a seed that has grown on the way reads from before it.
        """
        self._refuse_outer_spans(model)
        for step in self.steps:
            h = step.run(model, h)
        return h

    def _refuse_outer_spans(self, model: nn.Module) -> None:
        points = [module_at(model, step.path) for step in self.steps]
        grown = [point for point in points if isinstance(point, GraftPoint)]
        started = {id(recorder) for point in grown for recorder in point.recorders.values()}
        for point in grown:
            if any(id(recorder) not in started for recorder in point.span_inputs.values()):
                raise ObjectiveError(
                    "the next layer cannot be run by itself: a seed that has grown on it reads "
                    "from before the slot"
                )


@dataclass(eq=False)
class _Call:
    """One call of a module in the watched pass; ``last`` is the number of the last call that began
    before it ended."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    last: int = 0

    def given(self, h: Tensor) -> bool:
        """Whether ``h`` itself is among the arguments."""
        return any(value is h for value in (*self.args, *self.kwargs.values()))


def find_onward(
    model: nn.Module, slot: Slot, slots: Mapping[str, Slot], forward: Callable[[], object]
) -> Onward:
    """The way from ``slot`` to the output slot that comes next, of those in ``slots``.

    ``forward`` runs ``model`` once; the host is left exactly as it was.

    Raises:
        ObjectiveError: there is none, and why.
    """
    with HostGuard(model), torch.no_grad(), uncompiled(), _watching(model) as calls:
        forward()
        call = next((call for call in calls if call.path == slot.end), None)
        steps: list[Step] = []
        place = slot.end
        while call is not None:
            place, h = call.path, activation(call.output)
            call = _consumer(calls, call.last + 1, h, slots)
            if call is not None:
                steps.append(_step(call, h))
                if call.path in slots:
                    return Onward(slots[call.path], tuple(steps))
    raise ObjectiveError(
        f"the layer after slot {slot.id!r} cannot be run by itself: no module is given the output "
        f"of {place!r} as it is, so it is the last one, or the host computes with it outside of "
        "modules; wanted modules up to the next slot, or another objective"
    )


def _consumer(calls: list[_Call], start: int, h: object, slots: Mapping[str, Slot]) -> _Call | None:
    """The first call from number ``start`` on that is given ``h``: the innermost where one module
    hands it to another, but what carries a slot, or has grown, is one module."""
    for number, call in enumerate(calls[start:], start):
        whole = call.last == number or call.path in slots or isinstance(call.module, GraftPoint)
        if whole and isinstance(h, Tensor) and call.given(h):
            return call
    return None


def _step(call: _Call, h: Tensor) -> Step:
    given = (*call.args, *call.kwargs.values())
    for value in given:
        if value is not h and not isinstance(value, _PLAIN):
            raise ObjectiveError(
                f"the next layer cannot be run by itself: {call.path!r} is given a "
                f"{type(value).__name__} besides the activation; wanted another objective"
            )
    args = tuple(_Argument.FLOW if value is h else value for value in call.args)
    kwargs = {name: _Argument.FLOW if value is h else value for name, value in call.kwargs.items()}
    return Step(call.path, args, kwargs)


@contextmanager
def _watching(model: nn.Module) -> Iterator[list[_Call]]:
    """Collect the calls of the host's modules in the pass that is run inside, as they begin."""
    calls: list[_Call] = []
    under_way: list[_Call] = []
    handles: list[RemovableHandle] = []

    def enter(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            under_way.append(_Call(path, module, args, kwargs))
            calls.append(under_way[-1])

        return hook

    def leave(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        call = under_way.pop()
        call.output, call.last = output, len(calls) - 1

    try:
        for path, module in _host_modules(model, ""):
            handles.append(module.register_forward_pre_hook(enter(path), with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _host_modules(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The host's modules by their paths, which do not name graft points; nothing that has grown."""
    yield path, module
    for step, child in host_of(module)._modules.items():
        if child is not None:
            yield from _host_modules(child, f"{path}.{step}" if path else step)
