"""What training consists of besides its seeds: host, optimizer, generators and the user's own.

Each part is taken as plain values and put back *into* the user's own objects, which stay the
objects that they are. Taking copies nothing; the packer does that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
import torch
from torch import Tensor, nn

from esper.kasmina.digest import weights_digest
from esper.kasmina.graft import GraftedSeed, GraftPoint
from esper.tolaria.checkpoint.file import CheckpointError
from esper.tolaria.checkpoint.values import Packer, ValueRefusedError

_INTERNAL = frozenset(nn.Module().__dict__) - {"training"}


class Host:
    """The tensors of a model, and the plain attributes of its modules that training changes.

    An attribute that is as it was at the start is left alone, so that what belongs to a process
    (a path, a device) stays that process's own.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._first = WeakKeyDictionary[nn.Module, dict[str, str]]()
        for module in model.modules():
            self._first[module] = {n: _digest(v) for n, v in _attributes(module).items()}

    def take(self) -> dict[str, Any]:
        """The state as values."""
        model = self._model
        state = model.state_dict()
        return {
            "state": dict(state),
            "buffers": {n: b for n, b in model.named_buffers() if n not in state},
            "frozen": [n for n, p in model.named_parameters() if not p.requires_grad],
            "graded": [n for n, p in model.named_parameters() if p.grad is not None],
            "attributes": {
                path: changed
                for path, module in model.named_modules()
                if (changed := self._changed(module))
            },
        }

    def put_back(self, taken: Mapping[str, Any]) -> None:
        """Give the model, which has the same structure, that state.

        Raises:
            CheckpointError: it is of another structure.
        """
        self.refill(taken)
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(name not in taken["frozen"])
            parameter.grad = torch.zeros_like(parameter) if name in taken["graded"] else None

    def require_same(self, taken: Mapping[str, Any]) -> None:
        """Raise ``CheckpointError`` where the state is that of a model of another structure."""
        _require_same(taken["state"], self._model.state_dict())

    def refill(self, taken: Mapping[str, Any]) -> None:
        """Tensors and attributes of that state, and nothing of how the model is trained.

        Raises:
            CheckpointError: it is of another structure.
        """
        model = self._model
        self.require_same(taken)
        model.load_state_dict(taken["state"])
        buffers = dict(model.named_buffers())
        with torch.no_grad():
            for name, value in taken["buffers"].items():
                buffers[name].copy_(value)
        modules = dict(model.named_modules())
        for path, attributes in taken["attributes"].items():
            for name, value in attributes.items():
                _put_attribute(modules[path], name, value)

    def _changed(self, module: nn.Module) -> dict[str, Any]:
        first = self._first.get(module, {})
        return {n: v for n, v in _attributes(module).items() if first.get(n) != _digest(v)}


def _attributes(module: nn.Module) -> dict[str, Any]:
    """The plain values among a module's attributes; Esper's own modules have none."""
    if isinstance(module, (GraftPoint, GraftedSeed)):
        return {}
    return {
        name: {"generator": value.get_state()} if isinstance(value, torch.Generator) else value
        for name, value in vars(module).items()
        if name not in _INTERNAL and (isinstance(value, torch.Generator) or _is_plain(value))
    }


def _put_attribute(module: nn.Module, name: str, value: Any) -> None:
    here = vars(module).get(name)
    if isinstance(here, torch.Generator):
        here.set_state(value["generator"])
    else:
        setattr(module, name, value)


def _is_plain(value: object) -> bool:
    try:
        Packer().pack(value, "")
    except ValueRefusedError:
        return False
    return True


def _digest(value: object) -> str:
    packer = Packer()
    text = msgspec.json.encode(packer.pack(value, ""), order="sorted")
    return hashlib.sha256(text + weights_digest(packer.tensors).encode()).hexdigest()


def _require_same(taken: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for name in sorted(taken.keys() | own.keys()):
        here, there = _kind(own.get(name)), _kind(taken.get(name))
        if here != there:
            raise CheckpointError(
                f"it holds {name} as {there}, and the model has {here}: model and versions must "
                "be those of the run"
            )


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return "nothing" if value is None else type(value).__name__


def take_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """Every parameter group: settings, its parameters by name, and what is kept for each; and
    what is kept for no parameter.

    A parameter that is not the model's has its place among such for a name, and is kept itself.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        strange = [p for p in group["params"] if p not in names]
        places = {p: place for place, p in enumerate(strange)}
        groups.append(
            {
                "settings": {name: value for name, value in group.items() if name != "params"},
                "members": [names[p] if p in names else places[p] for p in group["params"]],
                "strange": [p.detach() for p in strange],
            }
        )
    place = {
        p: (g, n)
        for g, group in enumerate(optimizer.param_groups)
        for n, p in enumerate(group["params"])
    }
    kept = optimizer.state.items()
    return {
        "groups": groups,
        "state": [(*place[key], dict(entries)) for key, entries in kept if key in place],
        "shared": {key: value for key, value in kept if not isinstance(key, Tensor)},
    }


def require_same_groups(optimizer: torch.optim.Optimizer, taken: Mapping[str, Any]) -> None:
    """Raise ``CheckpointError`` where the state is that of an optimizer of other groups."""
    if len(taken["groups"]) != len(optimizer.param_groups):
        raise CheckpointError(
            f"it holds {len(taken['groups'])} parameter groups, and the optimizer has "
            f"{len(optimizer.param_groups)}: make it as it was made for the run"
        )


def put_back_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    taken: Mapping[str, Any],
    *,
    settings: bool = True,
) -> None:
    """Give the optimizer of a model, which has the same structure, that state; unless
    ``settings``, its groups keep theirs.

    Raises:
        CheckpointError: its groups, or the parameters in them, are others.
    """
    require_same_groups(optimizer, taken)
    groups = taken["groups"]
    parameters = dict(model.named_parameters())
    ours = set(parameters.values())
    for group, kept in zip(optimizer.param_groups, groups, strict=True):
        strange = [p for p in group["params"] if p not in ours]
        _fill(strange, kept["strange"])
        group["params"][:] = [
            strange[member] if isinstance(member, int) else parameters[member]
            for member in kept["members"]
        ]
        if settings:
            _put_settings(group, kept["settings"])
    optimizer.state.clear()
    for number, place, entries in taken["state"]:
        optimizer.state[optimizer.param_groups[number]["params"][place]] = entries
    optimizer.state.update(taken["shared"])


def _fill(strange: list[nn.Parameter], kept: list[Tensor]) -> None:
    if [_kind(p) for p in strange] != [_kind(t) for t in kept]:
        raise CheckpointError(
            "the optimizer trains parameters that are not the model's, and not those of the run: "
            "make it as it was made for the run"
        )
    with torch.no_grad():
        for parameter, value in zip(strange, kept, strict=True):
            parameter.copy_(value)


def _put_settings(group: dict[str, Any], kept: Mapping[str, Any]) -> None:
    for name, value in kept.items():
        here = group.get(name)
        if isinstance(here, Tensor) and isinstance(value, Tensor):
            here.copy_(value)  # A scheduler may hold this very tensor.
        else:
            group[name] = value
