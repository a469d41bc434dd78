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
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from esper.kasmina.errors import Faults, IsolationError
from esper.kasmina.random_state import RandomState, cuda_in_use

_MODULE_INTERNALS = frozenset(nn.Module().__dict__) - {"training"}
_KEPT = (
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
    types.ModuleType,
    nn.Module,
    nn.Parameter,
    Faults,
)
"""What a guarded pass cannot change, or is to be seen afterwards: it is not copied."""


def seed_everything(value: int) -> None:
    """Seed every generator a model can draw from with ``value`` (taken modulo 2**32)."""
    value %= 2**32
    torch.default_generator.manual_seed(value)
    if cuda_in_use():
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
        modules = _all_modules(model)
        memo: dict[Any, Any] = {id(module): module for module in modules}
        memo.update((id(p), p) for module in modules for p in module._parameters.values())
        self._take(modules)
        try:
            for module in modules:
                _copy_buffers(module, memo)
            for module in modules:
                _copy_mutable(module, memo)
        except IsolationError:
            self.put_back()
            raise

    @classmethod
    def current(cls, model: nn.Module) -> ModuleState:
        """The objects that are in place now, nothing copied or exchanged."""
        state = cls.__new__(cls)
        state._take(_all_modules(model))
        return state

    def _take(self, modules: list[nn.Module]) -> None:
        self._objects = [(m, dict(m.__dict__), dict(m._buffers), dict(m._modules)) for m in modules]

    @property
    def modules(self) -> list[nn.Module]:
        """All modules that have a state here."""
        return [module for module, *_ in self._objects]

    @property
    def modes(self) -> list[tuple[nn.Module, bool]]:
        """Each module, and whether it was in training mode."""
        return [(module, attributes["training"]) for module, attributes, *_ in self._objects]

    def put_back(self) -> None:
        """Restore the very objects that were there; what came since goes."""
        for module, attributes, buffers, children in self._objects:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
            module._modules.clear()
            module._modules.update(children)


def _all_modules(model: nn.Module) -> list[nn.Module]:
    """The model's modules and those that one of them holds without having registered it.

    Walked here and not by ``model.modules()``, because every shadow pass does it.
    """
    found = {model: None}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        for value in (*module._modules.values(), *module.__dict__.values()):
            if isinstance(value, nn.Module) and value not in found:
                found[value] = None
                waiting.append(value)
    return list(found)


def _copy_buffers(module: nn.Module, memo: dict[Any, Any]) -> None:
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = _twin(buffer, memo)


def _copy_mutable(module: nn.Module, memo: dict[Any, Any]) -> None:
    for name, value in list(module.__dict__.items()):
        if name in _MODULE_INTERNALS or isinstance(value, _KEPT):
            continue
        try:
            module.__dict__[name] = _copied(value, memo)
        except Exception as error:
            raise IsolationError(
                f"attribute {name!r} of {type(module).__name__} ({type(value).__name__}) cannot be "
                f"copied, so a shadow pass could change it: {error}; keep such state outside the "
                "module or make it a buffer"
            ) from error


def _copied(value: object, memo: dict[Any, Any]) -> object:
    if isinstance(value, Tensor):
        return _twin(value, memo)
    if isinstance(value, torch.Generator):
        twin = torch.Generator(device=value.device)
        twin.set_state(value.get_state())
        return twin
    if not isinstance(value, types.MethodType):
        _twin_tensors_within(value, memo, set())
    return copy.deepcopy(value, memo)


def _twin(tensor: Tensor, memo: dict[Any, Any]) -> Tensor:
    """A copy outside any graph; tensors that share their memory have copies that share theirs."""
    known: Tensor | None = memo.get(id(tensor))
    if known is None:
        known = memo[id(tensor)] = _copied_tensor(tensor.detach(), memo)
    return known


def _copied_tensor(tensor: Tensor, memo: dict[Any, Any]) -> Tensor:
    plain = type(tensor) is Tensor and tensor.layout == torch.strided
    if not plain or tensor.is_meta or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        return tensor.clone()
    storage = tensor.untyped_storage()
    key = ("storage", storage._cdata)
    if key not in memo:
        memo[key] = storage.clone()  # type: ignore[no-untyped-call]
    twin = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return twin.set_(memo[key], tensor.storage_offset(), tensor.shape, tensor.stride())


def _twin_tensors_within(value: object, memo: dict[Any, Any], seen: set[int]) -> None:
    """Enter what deepcopy does not manage: copies of the tensors inside a graph, and handles of
    hooks, of which a copy would hold the hooks of nobody."""
    if isinstance(value, _KEPT) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, RemovableHandle):
        memo[id(value)] = value
    elif isinstance(value, Tensor):
        if not value.is_leaf:
            _twin(value, memo)
    elif isinstance(value, Mapping):
        for item in value.values():
            _twin_tensors_within(item, memo, seen)
    elif isinstance(value, (list, tuple, set, deque)):
        for item in value:
            _twin_tensors_within(item, memo, seen)
    else:
        for item in list(getattr(value, "__dict__", {}).values()):
            _twin_tensors_within(item, memo, seen)


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
        self._learning = [] if not self._freeze else _learning(self._state.modules)
        for parameter in self._learning:
            parameter.requires_grad_(False)
        return self

    def __exit__(self, *_: object) -> None:
        for parameter in self._learning:
            parameter.requires_grad_(True)
        self._state.put_back()
        self._random.restore()


def _learning(modules: list[nn.Module]) -> list[nn.Parameter]:
    """The parameters that require a gradient."""
    held = (p for module in modules for p in module._parameters.values())
    return [p for p in held if p is not None and p.requires_grad]


def uncompiled() -> AbstractContextManager[None]:
    """A context in which compiled modules run eagerly; free where nothing was ever compiled."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance
