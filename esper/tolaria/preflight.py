"""Before a long run: would every slot of this model keep its host apart from a seed?"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from esper.blueprints.build import applies, build
from esper.blueprints.ir import Blueprint
from esper.blueprints.library import LIBRARY
from esper.kasmina.check import contract_violations
from esper.kasmina.digest import tensor_bytes
from esper.kasmina.errors import KasminaError, ObjectiveError
from esper.kasmina.host import own_module
from esper.kasmina.isolation import HostGuard, seed_everything, uncompiled
from esper.kasmina.seed import Seed
from esper.kasmina.shadow import LossFunction, scalar_loss, shadow_step
from esper.kasmina.signature import Slot
from esper.kasmina.slots import find_slots

_NOISE = 0x5EED


@dataclass(frozen=True)
class SlotReport:
    """One slot: the blueprint that was tried in it, and what was wrong; nothing when isolated."""

    slot: str
    blueprint: str
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether a seed there leaves the host's bits alone."""
        return not self.problems


@dataclass(frozen=True)
class IsolationReport:
    """What :func:`check_isolation` found.

    ``refused`` is the reason why nothing could be tried, ``left_out`` modules without slots and
    why.
    """

    slots: tuple[SlotReport, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""

    @property
    def ok(self) -> bool:
        """Whether there are slots, and a seed in any of them leaves the host's bits alone."""
        return bool(self.slots) and not self.refused and all(slot.ok for slot in self.slots)

    def __str__(self) -> str:
        if self.refused:
            return f"isolation: refused\n  {self.refused}"
        good = sum(slot.ok for slot in self.slots)
        width = max((len(slot.slot) for slot in self.slots), default=0)
        lines = [f"isolation: {good} of {len(self.slots)} slots ok"]
        for slot in self.slots:
            verdict = "ok" if slot.ok else "; ".join(slot.problems)
            lines.append(f"  {slot.slot:{width}}  {slot.blueprint or '-':16} {verdict}")
        lines += [f"  no slot on {name}: {reason}" for name, reason in self.left_out.items()]
        return "\n".join(lines)


def check_isolation(
    model: nn.Module, batch: Any, loss_fn: LossFunction | None = None
) -> IsolationReport:
    """Try a seed in every slot of ``model`` and compare the host's bits with and without it.

    For each slot, with the first blueprint of the library that fits: the contract check of
    germination, then a step of the seed's shadow objective between two forward and backward
    passes of the host alone. Loss and all gradients of the two passes must agree bit for bit, and
    so must parameters, buffers and random state before and after. The model is left as it was.

    Args:
        model: the host, in the mode in which it is trained.
        batch: what ``loss_fn`` takes. Without ``loss_fn``: the input of the model, or a sequence
            that starts with it.
        loss_fn: the objective of training, best given as it is; otherwise the mean square of the
            model's output.
    """
    objective = loss_fn or _mean_square(model)
    try:
        model = own_module(model)
        found = find_slots(model, lambda: objective(batch))
        reference = _host_pass(model, objective, batch)
        again = _host_pass(model, objective, batch)
    except KasminaError as error:
        return IsolationReport(refused=str(error))
    if reference != again:
        return IsolationReport(
            left_out=found.left_out,
            refused="two passes of the host alone over one batch differ in "
            f"{_differences(reference, again)}: it is not deterministic, so nothing bitwise can be "
            "said of it (torch.use_deterministic_algorithms, and no state outside the model)",
        )
    reports = [_try_slot(model, slot, objective, batch, reference) for slot in found.slots.values()]
    return IsolationReport(tuple(reports), found.left_out)


def _mean_square(model: nn.Module) -> LossFunction:
    def objective(batch: Any) -> Tensor:
        given = batch[0] if isinstance(batch, (tuple, list)) else batch
        output = model(given)
        if not isinstance(output, Tensor):
            raise ObjectiveError(
                f"the model returned {type(output).__name__}, wanted a tensor: pass loss_fn"
            )
        return output.float().square().mean()

    return objective


def _try_slot(
    model: nn.Module,
    slot: Slot,
    loss_fn: LossFunction,
    batch: Any,
    reference: dict[str, bytes],
) -> SlotReport:
    blueprint = _fitting(slot)
    if blueprint is None:
        return SlotReport(slot.id, "", ("no blueprint of the library fits",))
    seed = _noisy_seed(slot, blueprint)
    before = _bits(model)
    try:
        problems = contract_violations(model, seed, loss_fn, batch)
        if not problems:
            shadow_step(model, seed, loss_fn, batch, _NOISE)
            problems = _traces(before, _bits(model), "the model's {}")
            problems += _traces(reference, _host_pass(model, loss_fn, batch), "the host's {}")
    except (KasminaError, RuntimeError, ValueError, TypeError, IndexError) as error:
        problems = [_reason(error)]
    return SlotReport(slot.id, blueprint.name, tuple(problems))


def _fitting(slot: Slot) -> Blueprint | None:
    """The first blueprint of the library that could germinate in ``slot``."""
    fitting = (
        blueprint
        for blueprint in LIBRARY.values()
        if blueprint.source == slot.source and applies(blueprint, slot) is None
    )
    return next(fitting, None)


def _noisy_seed(slot: Slot, blueprint: Blueprint) -> Seed:
    """A seed that has something to say: a fresh one adds zeros, which hides nothing."""
    generator = torch.Generator().manual_seed(_NOISE)
    body = build(blueprint, slot, generator)
    with torch.no_grad():
        for parameter in body.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter), alpha=0.1)
    optimizer = torch.optim.SGD(body.parameters(), lr=0.01)
    return Seed(0, slot, blueprint.id, body, optimizer)


def _host_pass(model: nn.Module, loss_fn: LossFunction, batch: Any) -> dict[str, bytes]:
    """The bits of the loss and of every gradient of one pass of the host alone, from one random
    state; the model keeps its own gradients."""
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        with HostGuard(model, freeze=False), torch.enable_grad(), uncompiled():
            seed_everything(_NOISE)
            for parameter, _ in kept:
                parameter.grad = None
            loss = scalar_loss(loss_fn(batch))
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            found = {"loss": tensor_bytes(loss)}
            for name, parameter in model.named_parameters():
                gradient = parameter.grad
                found[f"gradient of {name}"] = b"" if gradient is None else tensor_bytes(gradient)
            return found
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


def _bits(model: nn.Module) -> dict[str, bytes]:
    """Everything of the host and the random generators that a seed could touch."""
    found = {"random state of torch": tensor_bytes(torch.default_generator.get_state())}
    found["random state of Python"] = repr(random.getstate()).encode()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        found[f"parameter {name}"] = tensor_bytes(parameter)
        found[f"gradient of {name}"] = b"" if gradient is None else tensor_bytes(gradient)
        found[f"requires_grad of {name}"] = bytes([parameter.requires_grad])
    for name, buffer in model.named_buffers():
        found[f"buffer {name}"] = tensor_bytes(buffer)
    return found


def _traces(before: dict[str, bytes], after: dict[str, bytes], where: str) -> list[str]:
    changed = _differences(before, after)
    return [f"{where.format(changed)} changed"] if changed else []


def _differences(before: dict[str, bytes], after: dict[str, bytes]) -> str:
    names = [name for name in before | after if before.get(name) != after.get(name)]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
