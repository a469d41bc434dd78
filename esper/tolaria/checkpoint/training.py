"""Everything that a run must keep to go on: one value to be written, and to be put back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from esper.kasmina.host_update import Stateful
from esper.kasmina.random_state import RandomState
from esper.tamiyo.interface import Restorable
from esper.tolaria.checkpoint.file import CheckpointError
from esper.tolaria.checkpoint.host import HostState
from esper.tolaria.checkpoint.values import Packer


class Lifecycle(Protocol):
    """What runs the seeds: the engine."""

    @property
    def quiet(self) -> bool: ...

    def snapshot(self) -> dict[str, Any]: ...


class Training:
    """Host, optimizer, seeds, controller, generators, and objects of the user's by name: those
    that the ``host`` state has, and ``others``."""

    def __init__(
        self, host: HostState, controller: Restorable, others: Mapping[str, Stateful]
    ) -> None:
        """Raises ``ValueRefusedError`` for an object whose state no checkpoint can hold."""
        self.host = host
        self._controller = controller
        self._others = others
        self._objects = {**host.objects, **others}
        for name, held in self._objects.items():
            Packer().pack(held.state_dict(), name)

    def take(self, seeds: Lifecycle) -> dict[str, Any]:
        """All of it, not copied yet."""
        return {
            **self.host.take(),
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
        for name, held in self._others.items():
            held.load_state_dict(taken["objects"][name])
        # Behind the schedulers, which may write into the groups as they load.
        self.host.put_back(taken, whole=True)
        self._controller.restore(taken["controller"])
        RandomState.of(taken["random"]).restore()
