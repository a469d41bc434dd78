"""One step for the optimizers of several seeds: a step costs a call far more than an element."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.seed import Seed

_STATE_PER_PARAMETER = frozenset(
    {"Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam"}
)
"""Optimizers of ``torch.optim`` that keep nothing but a state per parameter."""


class JointOptimizer:
    """Steps the optimizers of several seeds as one, where they are of one kind with equal settings.

    Every optimizer keeps its own state, which goes with its seed; the joint one works on that very
    state. It is the same update in another order of operations: on the CPU fused where torch has
    that, unless the settings say how to compute.
    """

    def __init__(self, seeds: Sequence[Seed]) -> None:
        optimizers = [seed.optimizer for seed in seeds if seed.optimizer is not None]
        self._joint = _joined(optimizers)

    def step(self) -> None:
        """Step every seed with the gradients that stand in its parameters, and clear them."""
        for joint in self._joint:
            joint.step()
            joint.zero_grad(set_to_none=True)


def _joined(optimizers: Sequence[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
    equal: list[list[torch.optim.Optimizer]] = []
    for optimizer in optimizers:
        for others in equal:
            if _alike(others[0], optimizer):
                others.append(optimizer)
                break
        else:
            equal.append([optimizer])
    return [_one(members) if len(members) > 1 else members[0] for members in equal]


def _alike(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> bool:
    """Whether one step of both is a step of each."""
    plain = type(a) is getattr(torch.optim, type(a).__name__, None)
    known = plain and type(a).__name__ in _STATE_PER_PARAMETER
    return known and type(a) is type(b) and _settings(a) == _settings(b)


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Those of every group; a tensor, which may be changed in place, equals nothing but itself."""
    return [
        {n: id(v) if isinstance(v, Tensor) else v for n, v in group.items() if n != "params"}
        for group in optimizer.param_groups
    ]


def _one(members: Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    joint = copy.copy(members[0])
    joint.state = defaultdict(dict)
    joint.param_groups = []
    for groups in zip(*(member.param_groups for member in members), strict=True):
        parameters = [parameter for group in groups for parameter in group["params"]]
        joint.param_groups.append(
            {**groups[0], "params": parameters, **_way(groups[0], parameters)}
        )
    for member in members:
        for group in member.param_groups:
            joint.state.update(
                (parameter, member.state[parameter]) for parameter in group["params"]
            )
    return joint


def _way(group: Mapping[str, Any], parameters: Sequence[nn.Parameter]) -> dict[str, bool]:
    """How to compute, where the settings leave that to torch."""
    if any(group.get(name) for name in ("foreach", "fused", "capturable", "differentiable")):
        return {}
    if group.get("foreach", False) is not None:  # No such setting, or one that says no.
        return {}
    if any(p.device.type != "cpu" or not p.is_floating_point() for p in parameters):
        return {}  # On other devices torch chooses well.
    # torch 2.13's fused SGD leaves most of a parameter of half precision as it was.
    exact = all(p.dtype in (torch.float32, torch.float64) for p in parameters)
    return {"fused": True} if exact and group.get("fused", False) is None else {"foreach": True}
