"""What the bodies of seeds make of the activations of one pass: many equal ones in one call.

Equal are seeds of one slot whose bodies are two layers of the same sizes with the same activation
between them. Such bodies draw nothing, and what is wrong with one is wrong with all of them: a
fault of another seed is none of theirs. Which seeds are computed in one call depends on the seeds
of the pass and on nothing else.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.kasmina.activation import turned
from esper.kasmina.capture import Captured
from esper.kasmina.residual import TwoLayers, offered, residual_graft
from esper.kasmina.seed import Seed
from esper.kasmina.shadow import SEED_FAULTS

MANY = 6
"""Fewer equal seeds were measured to gain little or nothing by one call."""
LARGE_RANK = 16
LARGE_LAYER = 8192
"""Above such a rank, or so many weights in a layer, one call was measured to gain nothing: the
operator must turn the second layer's weights round, and the products take the time."""
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@dataclass(frozen=True)
class Rows:
    """``values`` is ``[seeds, ...]``, where ``...`` is the activation of ``seeds``, which have one
    end, as the host lays it out."""

    seeds: Sequence[Seed]
    values: Tensor

    @property
    def end(self) -> str:
        """The end of their slots."""
        return self.seeds[0].slot.end


class Bodies:
    """The bodies of ``seeds`` in one pass of their host.

    ``faults`` holds what bodies raised, by the numbers of their seeds.
    """

    def __init__(self, seeds: Sequence[Seed]) -> None:
        self.faults: dict[int, Exception] = {}
        self._seeds = seeds
        self._added: dict[int, Tensor] = {}
        self._equal: list[_Equal] = []

    @property
    def whole(self) -> bool:
        """Whether rows are activations with what the seeds add, and not what they add alone.

        So it is in a tournament of equal seeds: the call writes both for the price of one.
        """
        return not self._added and len({seed.slot.end for seed in self._seeds}) == 1

    def visit(self, captured: Captured) -> None:
        """Let the bodies of the seeds in a slot read what the pass has there."""
        here = [seed for seed in self._seeds if seed.slot.id == captured.slot.id]
        for members, layers in self._parts(here, captured):
            if layers:
                # The call comes after the pass, outside of any transform of the host's; until then
                # the host may write over what it has here.
                copies = captured.x.clone(), captured.h.clone()
                self._equal.append(_Equal(members, layers, *copies))
                continue
            try:
                self._added[members[0].id] = _addition(members[0], captured)
            except SEED_FAULTS as error:
                self.faults[members[0].id] = error

    def rows(self) -> list[Rows]:
        """The rows of all seeds without a fault, those of one end together; call it when the pass
        is over."""
        found: list[Rows] = []
        for equal in self._equal:
            try:
                found.append(Rows(equal.seeds, equal.values(self.whole)))
            except SEED_FAULTS as error:
                self.faults.update((seed.id, error) for seed in equal.seeds)
        able = [seed for seed in self._seeds if seed.id not in self.faults]
        rows: list[Rows] = []
        for end in dict.fromkeys(seed.slot.end for seed in able):
            rows += [some for some in found if some.end == end]
            others = [s for s in able if s.slot.end == end and s.id in self._added]
            if others:
                rows.append(Rows(others, torch.stack([self._added[s.id] for s in others])))
        return rows

    def _parts(
        self, seeds: Sequence[Seed], captured: Captured
    ) -> list[tuple[list[Seed], list[TwoLayers]]]:
        """Seeds that are computed in one call with their layers, every other one by itself."""
        if len(seeds) < MANY:
            return [([seed], []) for seed in seeds]
        h, x = captured.h, captured.x
        alike: dict[Hashable, tuple[list[Seed], list[TwoLayers]]] = {}
        for seed in seeds:
            try:
                layers = offered(seed.body, h, x)
            except SEED_FAULTS as error:
                self.faults[seed.id] = error
                continue
            kind = seed.id if layers is None else tuple(map(_kind, layers))
            members, found = alike.setdefault(kind, ([], []))
            members.append(seed)
            found += [] if layers is None else [layers]
        parts: list[tuple[list[Seed], list[TwoLayers]]] = []
        for members, found in alike.values():
            one_call = len(members) >= MANY and _gains(found[0], h, x)
            parts += [(members, found)] if one_call else [([seed], []) for seed in members]
        return parts


def _kind(part: object) -> Hashable:
    """What equal seeds have in common in one part of their layers."""
    return (part.shape, part.dtype, part.device) if isinstance(part, Tensor) else part


def _gains(layers: TwoLayers, h: Tensor, x: Tensor) -> bool:
    """Whether one call takes many seeds with such ``layers``, and faster than many calls."""
    rank = layers.up.shape[-1]
    return (
        h.dtype in _DTYPES
        and not (h.is_inference() or x.is_inference())
        and rank <= LARGE_RANK
        and rank * max(x.shape[-1], h.shape[-1]) <= LARGE_LAYER
    )


def _addition(seed: Seed, captured: Captured) -> Tensor:
    """What the body of ``seed`` gives, as the host lays it out."""
    delta = seed.added(captured.x, captured.h)
    return turned(delta, seed.slot.batch_axis).to(captured.h.dtype)


@dataclass(frozen=True)
class _Equal:
    """Equal seeds of one slot with their layers, and what the pass had there."""

    seeds: Sequence[Seed]
    layers: Sequence[TwoLayers]
    x: Tensor
    h: Tensor

    def values(self, whole: bool) -> Tensor:
        h, each = self.h, self.layers
        # The host ran without autocast here; what holds around it is not asked.
        with torch.autocast(h.device.type, enabled=False):
            values = residual_graft(
                h if whole else h.new_zeros(()).expand(h.shape),
                self.x,
                torch.stack([layers.down for layers in each]),
                torch.stack([layers.up for layers in each]),
                h.new_ones(1),
                down_bias=_stacked([layers.down_bias for layers in each]),
                up_bias=_stacked([layers.up_bias for layers in each]),
                activation=each[0].activation,
            )
        return values.transpose(1, 2) if self.seeds[0].slot.batch_axis else values


def _stacked(biases: Sequence[Tensor | None]) -> Tensor | None:
    present = [bias for bias in biases if bias is not None]
    return torch.stack(present) if present else None
