"""Keeping the host untouched while somebody else runs it.

Inside a :class:`HostGuard` the host can be run forward and backward freely; afterwards its
buffers, its module state, the random generators and the ``requires_grad`` flags are bit for
bit what they were. Buffers are exchanged for copies and put back, never written to, so that no
version counter moves and an alias held elsewhere sees nothing.
"""

from __future__ import annotations

import copy
import random
import sys
import types
from typing import Any, Self

import torch
from torch import Tensor, nn

from esper.kasmina.errors import IsolationError

_MODULE_INTERNALS = frozenset(nn.Module().__dict__) - {"training"}
_IMMUTABLE = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    frozenset,
    range,
    type,
    torch.dtype,
    torch.device,
    torch.Size,
    types.FunctionType,
    types.BuiltinFunctionType,
    nn.Module,
    nn.Parameter,
)


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


class RandomState:
    """The state of every generator a model can draw from: torch (CPU and CUDA), Python, NumPy."""

    def __init__(self) -> None:
        self._torch = torch.default_generator.get_state()
        self._cuda = torch.cuda.get_rng_state_all() if _cuda_in_use() else None
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")
        self._numpy = None if numpy is None else numpy.random.get_state()

    def restore(self) -> None:
        """Put every generator back to the captured state."""
        torch.default_generator.set_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)


def seed_everything(value: int) -> None:
    """Seed every generator a model can draw from with ``value`` (taken modulo 2**32)."""
    value %= 2**32
    torch.default_generator.manual_seed(value)
    if _cuda_in_use():
        torch.cuda.manual_seed_all(value)
    random.seed(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(value)


class ModuleState:
    """Everything a forward pass can change in a model besides its parameters.

    Taking it puts copies in place of buffers and of mutable attributes; :meth:`put_back`
    restores the very objects that were there. Parameters stay in place throughout.

    Raises:
        IsolationError: a module holds state that cannot be copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []
        self._attributes: list[tuple[nn.Module, dict[str, Any]]] = []
        modules = list(model.modules())
        memo: dict[int, Any] = {id(module): module for module in modules}
        memo.update((id(parameter), parameter) for parameter in model.parameters())
        try:
            for module in modules:
                self._exchange_buffers(module, memo)
            for module in modules:
                self._attributes.append((module, dict(module.__dict__)))
                _copy_mutable(module, memo)
        except IsolationError:
            self.put_back()
            raise

    @classmethod
    def current(cls, model: nn.Module) -> ModuleState:
        """The objects that are in place now, nothing copied or exchanged."""
        state = cls.__new__(cls)
        state._buffers = [
            (module, name, buffer)
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        state._attributes = [(module, dict(module.__dict__)) for module in model.modules()]
        return state

    def _exchange_buffers(self, module: nn.Module, memo: dict[int, Any]) -> None:
        for name, buffer in module._buffers.items():
            if buffer is not None:
                self._buffers.append((module, name, buffer))
                module._buffers[name] = memo.setdefault(id(buffer), buffer.detach().clone())

    def put_back(self) -> None:
        """Restore the very objects that were there."""
        for module, attributes in self._attributes:
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for module, name, buffer in self._buffers:
            module._buffers[name] = buffer


def _copy_mutable(module: nn.Module, memo: dict[int, Any]) -> None:
    for name, value in list(module.__dict__.items()):
        if name in _MODULE_INTERNALS or isinstance(value, _IMMUTABLE):
            continue
        try:
            module.__dict__[name] = _copied(value, memo)
        except Exception as error:
            raise IsolationError(
                f"attribute {name!r} of {type(module).__name__} ({type(value).__name__}) cannot be "
                f"copied, so a shadow pass could change it: {error}; keep such state outside the "
                "module or make it a buffer"
            ) from error


def _copied(value: object, memo: dict[int, Any]) -> object:
    if isinstance(value, Tensor):
        return memo.setdefault(id(value), value.detach().clone())
    if isinstance(value, torch.Generator):
        twin = torch.Generator(device=value.device)
        twin.set_state(value.get_state())
        return twin
    return copy.deepcopy(value, memo)


class HostGuard:
    """A context in which the host can be run without leaving a trace.

    ``freeze=True`` (the default) takes ``requires_grad`` from every host parameter meanwhile, so
    that no gradient can reach one.
    """

    def __init__(self, model: nn.Module, *, freeze: bool = True) -> None:
        self._model = model
        self._freeze = freeze

    def __enter__(self) -> Self:
        self._random = RandomState()
        self._state = ModuleState(self._model)
        self._learning = [p for p in self._model.parameters() if self._freeze and p.requires_grad]
        for parameter in self._learning:
            parameter.requires_grad_(False)
        return self

    def __exit__(self, *_: object) -> None:
        for parameter in self._learning:
            parameter.requires_grad_(True)
        self._state.put_back()
        self._random.restore()
