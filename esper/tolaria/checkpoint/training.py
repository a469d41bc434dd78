"""Everything that a run must keep to go on: one value to be written, and to be put back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from esper.kasmina.host_update import Stateful
from esper.kasmina.random_state import RandomState
from esper.tamiyo.interface import Restorable
from esper.tolaria.checkpoint.contents import (
    Host,
    put_back_optimizer,
    take_optimizer,
)
from esper.tolaria.checkpoint.file import CheckpointError
from esper.tolaria.checkpoint.values import Packer


class Lifecycle(Protocol):
    """What runs the seeds: the engine."""

    @property
    def quiet(self) -> bool: ...

    def snapshot(self) -> dict[str, Any]: ...


class Training:
    """Host, optimizer, seeds, controller, generators, and objects of the user's by name."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        controller: Restorable,
        objects: Mapping[str, Stateful],
    ) -> None:
        """Raises ``ValueRefusedError`` for an object whose state no checkpoint can hold."""
        for name, held in objects.items():
            Packer().pack(held.state_dict(), name)
        self._model = model
        self._optimizer = optimizer
        self._controller = controller
        self._objects = objects
        self._host = Host(model)

    def take(self, seeds: Lifecycle) -> dict[str, Any]:
        """All of it, not copied yet."""
        return {
            "host": self._host.take(),
            "optimizer": take_optimizer(self._optimizer, self._model),
            "seeds": seeds.snapshot(),
            "controller": self._controller.state(),
            "objects": {name: held.state_dict() for name, held in self._objects.items()},
            "random": RandomState().values(),
        }

    def put_back(self, taken: Mapping[str, Any]) -> None:
        """Go on from what was taken in another process, where the seeds are in place again.

        Raises:
            CheckpointError: model, optimizer or objects are not made as they were then.
        """
        if taken["objects"].keys() != self._objects.keys():
            kept, given = (
                ", ".join(sorted(o)) or "none" for o in (taken["objects"], self._objects)
            )
            raise CheckpointError(f"it holds the states of {kept}, and given are {given}")
        self._host.put_back(taken["host"])
        for name, held in self._objects.items():
            held.load_state_dict(taken["objects"][name])
        # Behind the schedulers, which may write into the groups as they load.
        put_back_optimizer(self._optimizer, self._model, taken["optimizer"])
        self._controller.restore(taken["controller"])
        RandomState.of(taken["random"]).restore()
