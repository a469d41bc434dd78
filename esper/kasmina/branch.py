"""A fork of host and optimizer that trains on inside the same model object.

The user's loss function closes over the user's model, so a fork cannot be a second model
object. It is a second set of *contents*: tensors, buffers, module state, the modules in their
parents, optimizer state and random state that take the live ones' place for a moment and give it
back. Parameter and module objects keep their identity throughout, and a compiled host runs the
code that it ran before the graft.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.errors import KasminaError
from esper.kasmina.host_optimizer import all_finite
from esper.kasmina.host_update import HostUpdate, OwnStates
from esper.kasmina.isolation import ModuleState
from esper.kasmina.random_state import RandomState
from esper.kasmina.shadow import LossFunction


class Branch:
    """The host as it would be without what was grafted since the branch was taken."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, update: HostUpdate
    ) -> None:
        """Take the branch now: contents equal the live ones bit for bit."""
        self._model = model
        self._optimizer = optimizer
        self._update = update
        owned = dict.fromkeys([*model.parameters(), *_optimized(optimizer)])
        self._weights = {p: p.detach().clone() for p in owned}
        self._members = [list(group["params"]) for group in optimizer.param_groups]
        self._moments = _copied_state(optimizer)
        self._module_state = _LiveModuleState(model)
        self._states = OwnStates(update.stateful)
        self.steps = 0

    @property
    def finite(self) -> bool:
        """Whether weights and optimizer state hold numbers alone."""
        moments = (v for entries in self._moments.values() for v in entries.values())
        return all_finite([*self._weights.values(), *(v for v in moments if isinstance(v, Tensor))])

    def step(
        self,
        loss_fn: LossFunction,
        batch: Any,
        random_state: RandomState,
        hyperparameters: Sequence[dict[str, Any]],
    ) -> float:
        """Train the branch on ``batch`` as the live model was; returns its loss.

        ``random_state`` is what the live pass started from and ``hyperparameters`` what its
        optimizer step used, one mapping per parameter group.
        """
        with self.entered(), torch.enable_grad():
            random_state.restore()
            for group, values in zip(self._optimizer.param_groups, hyperparameters, strict=True):
                group.update(values)
            loss = self._update.run(loss_fn, batch)
        self.steps += 1
        return loss

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The branch in the live model's place; random state and everything else returns."""
        self._take_new_groups()
        random_state = RandomState()
        # The seed's own too: what clips or clears the model's gradients must not see them here.
        present = dict.fromkeys([*self._weights, *self._model.parameters()])
        gradients = [(p, p.grad) for p in present]
        groups = self._optimizer.param_groups
        live_members = [list(group["params"]) for group in groups]
        live_values = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        for parameter, _ in gradients:
            parameter.grad = None
        self._swap(self._members)
        try:
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            self._swap(live_members)
            for group, values in zip(groups, live_values, strict=True):
                group.update(values)
            random_state.restore()

    def adopt(self) -> None:
        """Let the branch go on in the live model's place, for good."""
        self._take_new_groups()
        self._swap(self._members)

    def _take_new_groups(self) -> None:
        """A parameter group that the user has added since the branch was taken is its own too.

        Raises:
            KasminaError: the branch knows nothing of its parameters.
        """
        for group in self._optimizer.param_groups[len(self._members) :]:
            if any(parameter not in self._weights for parameter in group["params"]):
                raise KasminaError(
                    "add_param_group brought parameters, while a graft was tested, that were "
                    "neither in the model nor in its optimizer when it began, so the fork cannot "
                    "be trained as the host is: add them while nothing is grafted"
                )
            self._members.append(list(group["params"]))

    def _swap(self, members: list[list[nn.Parameter]]) -> None:
        for parameter, weights in self._weights.items():
            self._weights[parameter], parameter.data = parameter.data, weights
        self._moments, self._optimizer.state = self._optimizer.state, self._moments
        for group, parameters in zip(self._optimizer.param_groups, members, strict=True):
            group["params"][:] = parameters
        self._module_state.swap()
        self._states.swap()


def _optimized(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def hyperparameters_of(group: dict[str, Any]) -> dict[str, Any]:
    """A copy of a parameter group without its parameters."""
    return {name: _frozen(value) for name, value in group.items() if name != "params"}


def _frozen(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _copied_state(optimizer: torch.optim.Optimizer) -> Any:
    twin = type(optimizer.state)(dict)
    for parameter, entries in optimizer.state.items():
        twin[parameter] = {
            name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
            for name, value in entries.items()
        }
    return twin


class _LiveModuleState:
    """Module state of the branch, exchanged with the live one on demand.

    The children of a module are part of it: what was grafted since is not in the branch.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        live = ModuleState(model)
        self._other = ModuleState.current(model)
        live.put_back()

    def swap(self) -> None:
        """Exchange the branch's module state with the live one.

        Modes are the user's, not the forward pass's: they stay as they are.
        """
        current = ModuleState.current(self._model)
        self._other.put_back()
        self._other = current
        for module, mode in current.modes:
            module.training = mode
