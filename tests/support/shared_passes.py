"""Hosts with seeds in many of their slots that share a pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esper.blueprints.build import applies, build
from esper.blueprints.ir import Activation, Blueprint, Linear, LowRank, Size
from esper.blueprints.library import LIBRARY
from esper.kasmina.joint_optimizer import JointOptimizer
from esper.kasmina.seed import Seed
from esper.kasmina.shadow import LossFunction
from esper.kasmina.shared import shared_step
from esper.kasmina.signature import Slot
from esper.kasmina.slots import find_slots
from support.hosts import HOSTS, classify, sgd_seed


@dataclass
class Setting:
    """A host with a batch, its objective and seeds in many of its slots."""

    model: nn.Module
    batch: Any
    loss_fn: LossFunction
    seeds: list[Seed]

    def copies(self) -> list[Seed]:
        """Seeds with the same weights and optimizers of their own."""
        return [sgd_seed(s.slot, copy.deepcopy(s.body), s.id) for s in self.seeds]


def noisy(slot: Slot, number: int) -> Seed | None:
    """A seed of the blueprint library with noise for weights; None where none fits."""
    for blueprint in list(LIBRARY.values())[number % 3 :]:
        if blueprint.source == slot.source and applies(blueprint, slot) is None:
            generator = torch.Generator().manual_seed(number)
            body = build(blueprint, slot, generator)
            for parameter in body.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
            if any(parameter.requires_grad for parameter in body.parameters()):
                return sgd_seed(slot, body, number)
    return None


def setting(
    model: nn.Module,
    x: Tensor,
    loss_of: Callable[[nn.Module], LossFunction] = classify,
    classes: int = 3,
    most: int = 12,
) -> Setting:
    slots = list(find_slots(model, lambda: loss_of(model)((x, labels(x, classes)))).slots.values())
    tried = (noisy(slot, number) for number, slot in enumerate(slots * 2))
    seeds = [seed for seed in tried if seed is not None]
    assert len({seed.slot.id for seed in seeds}) > 1
    return Setting(model, (x, labels(x, classes)), loss_of(model), seeds[:: -(-len(seeds) // most)])


def labels(x: Tensor, classes: int) -> Tensor:
    return torch.arange(len(x)) % classes


def together(
    found: Setting, seeds: Sequence[Seed] | None = None, draw: int = 5
) -> list[float | Exception]:
    seeds = found.seeds if seeds is None else seeds
    optimizer = JointOptimizer(seeds)
    return shared_step(found.model, seeds, found.loss_fn, found.batch, draw, optimizer)


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class SequenceFirst(nn.Module):
    """``[batch, 5, 6]`` to 3 logits, sequence-first inside."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 6)
        self.norm = nn.LayerNorm(6)
        self.attention = nn.MultiheadAttention(6, 2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.rnn(x.transpose(0, 1))
        h = self.norm(h)
        h = h + self.attention(h, h, h)[0]
        logits: Tensor = self.head(h.mean(0))
        return logits


RANK = Size("one", 3)
LOW_RANK = Blueprint("pair", "output", (LowRank(0, rank=RANK, size=Size("out"), init="zero"),))


def through(function: str, source: str = "output") -> Blueprint:
    between = Activation(1, function)  # type: ignore[arg-type]
    nodes = (Linear(0, RANK), between, Linear(2, Size("out"), init="zero"))
    return Blueprint("pair", source, nodes)  # type: ignore[arg-type]


def seeds_of(slot: Slot, blueprint: Blueprint, count: int, first: int = 0) -> list[Seed]:
    """Equal seeds with noise for weights."""
    found = []
    for number in range(first, first + count):
        generator = torch.Generator().manual_seed(number)
        body = build(blueprint, slot, generator)
        for parameter in body.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data += 0.1 * noise
        found.append(sgd_seed(slot, body, number))
    return found


def planted(model: nn.Module, x: Tensor, *groups: tuple[str, Blueprint, int]) -> Setting:
    slots = find_slots(model, lambda: model(x)).slots
    found: list[Seed] = []
    for slot, blueprint, count in groups:
        found += seeds_of(slots[slot], blueprint, count, len(found))
    return Setting(model, (x, labels(x, 3)), classify(model), found)


def double(name: str) -> tuple[nn.Module, Tensor]:
    """A host of ``HOSTS`` with an input, in float64."""
    model, x = HOSTS[name]()
    return model.double(), x.double() if x.is_floating_point() else x
