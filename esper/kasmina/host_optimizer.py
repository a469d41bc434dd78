"""Seeds and the user's optimizer: a seed learns with an optimizer of the same kind, and its
parameters move, moments and all, into the existing group of the slot's module.

``add_param_group`` is never used: it breaks schedulers that are already running.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.errors import KasminaError

_INSTEAD = "use SGD, Adam, AdamW or another optimizer with a state per parameter"

_REFUSED = {
    "LBFGS": "treats all parameters as one vector and cannot take a seed's",
    "Muon": "takes matrices alone, and a seed has biases too",
    "SparseAdam": "takes sparse gradients alone, and a seed's are dense",
}
"""Optimizers of torch.optim that no seed could join, and why."""


def host_group(
    optimizer: torch.optim.Optimizer, host_parameters: Sequence[nn.Parameter]
) -> dict[str, Any]:
    """The parameter group that holds the host module's parameters; the first one otherwise."""
    members = {id(parameter) for parameter in host_parameters}
    for group in optimizer.param_groups:
        if any(id(parameter) in members for parameter in group["params"]):
            return group
    return optimizer.param_groups[0]


def seed_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    host_parameters: Sequence[nn.Parameter],
    lr_scale: float,
) -> torch.optim.Optimizer | None:
    """An optimizer of the user's kind, with the settings of the slot's group, for one seed.

    Raises:
        KasminaError: no seed could join an optimizer of this kind, or a second one cannot be made
            from the settings of its groups.
    """
    if not parameters:
        return None
    for kind in type(optimizer).__mro__:
        if kind.__name__ in _REFUSED and kind.__module__.startswith("torch.optim"):
            raise KasminaError(f"{kind.__name__} {_REFUSED[kind.__name__]}; {_INSTEAD}")
    accepted = inspect.signature(type(optimizer).__init__).parameters
    group = host_group(optimizer, host_parameters)
    settings = {
        name: value for name, value in group.items() if name in accepted and name != "params"
    }
    try:
        settings["lr"] = float(group["lr"]) * lr_scale
        return type(optimizer)(parameters, **settings)
    except (KeyError, TypeError, ValueError) as error:
        raise KasminaError(
            f"a seed needs a {type(optimizer).__name__} of its own, and none can be made from the "
            f"settings of a parameter group ({type(error).__name__}: {error}); {_INSTEAD}"
        ) from error


def adopt_parameters(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    trial: torch.optim.Optimizer | None,
    host_parameters: Sequence[nn.Parameter],
    before: Sequence[nn.Parameter],
) -> None:
    """Take a seed's parameters and their state into the group of the slot's module.

    They stand behind the module's own, where ``model.parameters()`` has them too: torch stores an
    optimizer's state by position. Where the module is frozen and none of its own are there, they
    stand behind those that the model has ``before`` the seed's.
    """
    members: list[nn.Parameter] = host_group(optimizer, host_parameters)["params"]
    behind = _end(members, host_parameters) or _end(members, before)
    members[behind:behind] = parameters
    if trial is not None:
        for parameter in parameters:
            if parameter in trial.state:
                optimizer.state[parameter] = trial.state[parameter]


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all ``tensors`` of floating-point numbers hold numbers alone; waits for each device
    once."""
    found = defaultdict(list)
    for tensor in tensors:
        if tensor.is_floating_point():
            found[tensor.device].append(tensor.isfinite().all())
    return all(bool(torch.stack(answers).all()) for answers in found.values())


def trained_tensors(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """The parameters that have been trained so far, and what is kept for each of their elements."""
    for parameter, entries in optimizer.state.items():
        if isinstance(parameter, Tensor):
            yield parameter.detach()
            kept = (value for value in entries.values() if isinstance(value, Tensor))
            yield from (value for value in kept if value.shape == parameter.shape)


def _end(members: Sequence[nn.Parameter], of: Sequence[nn.Parameter]) -> int:
    """The place behind the last of ``members`` that is one ``of`` these; 0 where none is."""
    wanted = {id(parameter) for parameter in of}
    places = [place for place, member in enumerate(members, 1) if id(member) in wanted]
    return max(places, default=0)


def drop_parameters(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Take a seed's parameters and their state out of ``optimizer``."""
    gone = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        group["params"][:] = [p for p in group["params"] if id(p) not in gone]
    for parameter in parameters:
        optimizer.state.pop(parameter, None)
