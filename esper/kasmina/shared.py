"""Several seeds in one pass of their host, each with a loss of its own.

A first, plain pass is the host's: in it the bodies read the activations of their slots, many equal
ones in one call (``bodies``). A second pass runs the host once for all seeds, under ``vmap``
over the seeds: at its slot's end each adds what its body gave, and from there on it has
activations, statistics of normalisation and a loss of its own, through which alone a gradient
reaches its body.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.backends import mha
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase

from esper.kasmina.activation import activation, with_activation
from esper.kasmina.bodies import Bodies, Rows
from esper.kasmina.capture import capturing
from esper.kasmina.errors import KasminaError
from esper.kasmina.isolation import HostGuard, ModuleState, seed_everything, uncompiled
from esper.kasmina.joint_optimizer import JointOptimizer
from esper.kasmina.random_state import RandomState
from esper.kasmina.seed import Seed, evaluating, give_gradients
from esper.kasmina.shadow import LossFunction, scalar_loss

_NO_RECOMPUTATION = "tensors that are saved for the backward pass are recomputed or moved elsewhere"


class CannotShareError(KasminaError):
    """The seeds cannot share a pass of this host, or not this time; nothing has happened."""


def prepare() -> None:
    """Let torch load now what a first shared pass needs: that takes a second of a training."""
    torch.vmap(functional.cross_entropy)(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.long))


def shared_step(
    model: nn.Module,
    seeds: Sequence[Seed],
    loss_fn: LossFunction,
    batch: Any,
    random_seed: int,
    optimizer: JointOptimizer,
) -> list[float | Exception]:
    """One step of each seed's optimizer on its shadow objective: its loss, or what its body raised.

    ``optimizer`` is that of all ``seeds``. This is ``shadow_step`` of each seed with
    ``random_seed``, within rounding: all see the same draws. The host keeps its bits.

    Raises:
        CannotShareError: ``vmap`` cannot run the host or ``loss_fn``.
    """
    with HostGuard(model), torch.enable_grad():
        seed_everything(random_seed)
        with _sharing():
            losses, faults = _pass(model, seeds, loss_fn, batch)
            learning = [seed for seed in seeds if seed.id in losses and seed.optimizer is not None]
            parameters = [parameter for seed in learning for parameter in seed.trainable]
            gradients = _gradients(losses, parameters)
        give_gradients(parameters, gradients)
        optimizer.step()
        found = _values(losses)
    for seed in seeds:
        seed.shadow_steps += seed.id in found
    return [faults[seed.id] if seed.id in faults else found[seed.id] for seed in seeds]


def shared_losses(
    model: nn.Module, seeds: Sequence[Seed], loss_fn: LossFunction, batches: Sequence[Any]
) -> list[list[float] | Exception]:
    """For each seed the loss of every batch in evaluation mode with the seed switched on, or what
    its body raised.

    The same as ``held_out_losses`` of each, within rounding. The host is left exactly as it was.

    Raises:
        CannotShareError: ``vmap`` cannot run the host or ``loss_fn``.
    """
    found: dict[int, list[float]] = {seed.id: [] for seed in seeds}
    faults: dict[int, Exception] = {}
    with HostGuard(model, freeze=False), evaluating(model, *(seed.body for seed in seeds)):
        for batch in batches:
            left = [seed for seed in seeds if seed.id not in faults]
            with _sharing():
                losses, raised = _pass(model, left, loss_fn, batch)
            faults.update(raised)
            for number, loss in _values(losses).items():
                found[number].append(loss)
    return [faults[seed.id] if seed.id in faults else found[seed.id] for seed in seeds]


@contextmanager
def _sharing() -> Iterator[None]:
    """What goes wrong inside is no seed's fault, unless it goes wrong in a pass of its own too."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CannotShareError(f"seeds cannot share a pass here: {reason}") from error


def _pass(
    model: nn.Module, seeds: Sequence[Seed], loss_fn: LossFunction, batch: Any
) -> tuple[dict[int, Tensor], dict[int, Exception]]:
    """One pass of the host and one of it with all seeds: the losses of seeds, and what the bodies
    of others raised. The model is left as the pass of the host left it."""
    random, state = RandomState(), ModuleState(model)
    bodies, slots = Bodies(seeds), [seed.slot for seed in seeds]
    with capturing(model, slots, bodies.visit) as capture:
        loss_fn(batch)
    if random.passed:
        # vmap may lay a mask out in another order: the bodies read the draws of the second pass.
        state, bodies = _back_to(state, model, random), Bodies(seeds)
        with capturing(model, slots, bodies.visit) as capture:
            torch.vmap(lambda _: scalar_loss(loss_fn(batch)), randomness="same")(torch.zeros(1))
    for name in dict.fromkeys(slot.id for slot in slots):
        calls = capture.at[name].calls if name in capture.at else 0
        if calls != 1:
            raise CannotShareError(f"slot {name} was come to {calls} times in one pass")
    rows = bodies.rows()
    if not rows:
        return {}, bodies.faults
    ended = ModuleState.current(model)
    state = _back_to(state, model, random)
    try:
        losses = _losses(model, state.modules, rows, bodies.whole, loss_fn, batch)
    finally:
        ended.put_back()
    return losses, bodies.faults


def _back_to(state: ModuleState, model: nn.Module, random: RandomState) -> ModuleState:
    """Let another pass begin as the one before did, on copies as that one."""
    state.put_back()
    random.restore()
    return ModuleState(model)


def _losses(
    model: nn.Module,
    modules: Sequence[nn.Module],
    rows: Sequence[Rows],
    whole: bool,
    loss_fn: LossFunction,
    batch: Any,
) -> dict[int, Tensor]:
    """The loss with each seed alone switched on, in one pass."""
    ends = dict.fromkeys(some.end for some in rows)
    stacked = {end: _stack(rows, end) for end in ends}
    row: dict[str, Tensor] = {}

    def run(own: dict[str, Tensor]) -> Tensor:
        row.update(own)
        return scalar_loss(loss_fn(batch))

    with ExitStack() as around:
        for end in ends:
            hook = _switching(end, row, whole)
            handle = model.get_submodule(end).register_forward_hook(hook)
            around.callback(handle.remove)
        around.enter_context(uncompiled())
        around.enter_context(disable_saved_tensors_hooks(_NO_RECOMPUTATION))
        around.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
        mha.set_fastpath_enabled(False)  # It does not see what learns inside vmap.
        around.enter_context(warnings.catch_warnings())
        # An operator that vmap runs for one seed after the other is none of the user's business.
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        for module in modules:
            if isinstance(module, _NormBase) and module.training:
                # Statistics are those of the batch; tracking them would mix the seeds.
                module.track_running_stats = False
        losses = torch.vmap(run, randomness="same")(stacked)
    numbers = [seed.id for some in rows for seed in some.seeds]
    return dict(zip(numbers, losses.unbind(), strict=True))


def _stack(rows: Sequence[Rows], end: str) -> Tensor:
    """``[seeds, ...]`` with the values of ``rows``: zero where a seed's slot ends elsewhere."""
    here = [some.values for some in rows if some.end == end]
    if len(here) == len(rows) == 1:
        return here[0]
    nothing = torch.zeros_like(here[0][:1])
    shape = nothing.shape[1:]
    return torch.cat(
        [
            some.values if some.end == end else nothing.expand(len(some.seeds), *shape)
            for some in rows
        ]
    )


def _switching(end: str, row: Mapping[str, Tensor], whole: bool) -> Any:
    def switched_on(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        return with_activation(output, row[end] if whole else activation(output) + row[end])

    return switched_on


def _gradients(
    losses: Mapping[int, Tensor], parameters: Sequence[nn.Parameter]
) -> Sequence[Tensor | None]:
    if not parameters:
        return ()
    total = torch.stack(list(losses.values())).sum()
    return torch.autograd.grad(total, list(parameters), allow_unused=True)


def _values(losses: Mapping[int, Tensor]) -> dict[int, float]:
    if not losses:
        return {}
    values = torch.stack(list(losses.values())).tolist()
    return dict(zip(losses, values, strict=True))
