"""What of a checkpoint is the host's own, and can be put back while the run goes on.

That is what a fork has of its own: weights, module state, optimizer state, and the objects that an
update changes. Steps, data, schedules, generators, the settings of parameter groups and the seeds'
history belong to the run, and go on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from esper.kasmina.host_update import Stateful
from esper.tolaria.checkpoint.contents import (
    Host,
    put_back_optimizer,
    require_same_groups,
    take_optimizer,
)
from esper.tolaria.checkpoint.values import Packer, unpack


class HostState:
    """Model, optimizer, and the objects by name that belong to them."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        objects: Mapping[str, Stateful],
    ) -> None:
        self.objects = objects
        self._host = Host(model)
        self._model = model
        self._optimizer = optimizer

    def take(self) -> dict[str, Any]:
        """All of it, not copied yet."""
        return {
            "host": self._host.take(),
            "optimizer": take_optimizer(self._optimizer, self._model),
            "objects": {name: held.state_dict() for name, held in self.objects.items()},
        }

    def copied(self) -> dict[str, Any]:
        """All of it as it would be read from a file.

        Raises:
            ValueRefusedError: no checkpoint can hold it.
        """
        packer = Packer()
        packed = packer.pack(self.take(), "")
        read: dict[str, Any] = unpack(packed, packer.tensors)
        return read

    def require_fit(self, taken: Mapping[str, Any]) -> None:
        """Raise ``CheckpointError`` where a checkpoint is of another model or optimizer."""
        self._host.require_same(taken["host"])
        require_same_groups(self._optimizer, taken["optimizer"])

    def put_back(self, taken: Mapping[str, Any], *, whole: bool = False) -> None:
        """Let the host go on from there; what was ``taken`` stays as it is, to be put back again.

        The ``whole`` of it is put back in another process: settings of parameter groups, gradients,
        and what of the model learns, too.

        Raises:
            CheckpointError: it is of another model or optimizer.
        """
        # Model, optimizer and objects may keep what they are given, and change it in place.
        host, optimizer = copy.deepcopy((taken["host"], taken["optimizer"]))
        put_back = self._host.put_back if whole else self._host.refill
        put_back(host)
        for name, held in self.objects.items():
            held.load_state_dict(copy.deepcopy(taken["objects"][name]))
        put_back_optimizer(self._optimizer, self._model, optimizer, settings=whole)
