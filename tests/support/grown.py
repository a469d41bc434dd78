"""Hosts that have grown: fossils with weights that matter, in the slots that a test names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from esper.blueprints.build import applies
from esper.blueprints.ir import Blueprint
from esper.blueprints.library import LIBRARY
from esper.kasmina.lattice import install_fossil
from esper.kasmina.signature import Slot
from esper.kasmina.slots import find_slots
from esper.tolaria.trials import new_seed


def slots_of(model: nn.Module, x: Tensor) -> dict[str, Slot]:
    """The slots of ``model``."""
    return find_slots(model, lambda: model(x)).slots


def fitting(slot: Slot) -> list[Blueprint]:
    """Blueprints of the library that fit ``slot``."""
    return [b for b in LIBRARY.values() if b.source == slot.source and applies(b, slot) is None]


def grow(model: nn.Module, x: Tensor, *growth: tuple[str, str]) -> nn.Module:
    """Put a fossil into each named slot, built from the named blueprint; returns ``model``."""
    slots = slots_of(model, x)
    for number, (slot, blueprint) in enumerate(growth):
        seed = new_seed(number, slots[slot], LIBRARY[blueprint], 0)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in seed.parameters:
                parameter.copy_(torch.randn(parameter.shape, generator=generator).mul_(0.3))
        install_fossil(model, seed)
    return model


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What ``model`` computes in training and in evaluation, from one random state."""
    was = model.training
    found = []
    for mode in (True, False):
        model.train(mode)
        torch.manual_seed(5)
        found.append(model(x))
    model.train(was)
    return found


def equal(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors hold the same values."""
    return len(one) == len(two) and all(map(torch.equal, one, two))
