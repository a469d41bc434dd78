"""The interface contract for every batch size: shown on symbols, not on examples."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from esper.blueprints.build import applies, build
from esper.blueprints.ir import Blueprint
from esper.blueprints.library import LIBRARY
from esper.kasmina.graft import GraftedSeed
from esper.kasmina.signature import Slot
from esper.kasmina.slot_types import slot_type
from esper.kasmina.slots import find_slots


class Attending(nn.Module):
    """Attention over ``[time, batch, 8]`` or ``[batch, time, 8]``, then a Linear."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mix(self.attention(x, x, x)[0])
        return mixed


def hosts() -> dict[str, tuple[nn.Module, Tensor]]:
    """Hosts that have every kind of slot between them, and a batch of each."""
    planes = OrderedDict(conv=nn.Conv2d(3, 8, 3, padding=1), norm=nn.BatchNorm2d(8))
    signal = OrderedDict(conv=nn.Conv1d(3, 8, 3, padding=1), norm=nn.BatchNorm1d(8))
    vector = OrderedDict(inner=nn.Linear(16, 8), norm=nn.LayerNorm(8), outer=nn.Linear(8, 12))
    return {
        "vector": (nn.Sequential(vector), torch.randn(5, 16)),
        "tokens": (nn.Sequential(vector), torch.randn(5, 7, 16)),
        "signal": (nn.Sequential(signal), torch.randn(5, 3, 16)),
        "planes": (nn.Sequential(planes), torch.randn(5, 3, 8, 8)),
        "attention": (Attending(batch_first=True), torch.randn(5, 7, 8)),
        "time first": (Attending(batch_first=False), torch.randn(7, 5, 8)),
    }


def cases() -> Iterator[tuple[str, Slot, Blueprint]]:
    """Every blueprint in each kind of slot that it fits."""
    seen = set()
    for name, (model, x) in hosts().items():
        for slot in find_slots(model, lambda model=model, x=x: model(x)).slots.values():
            kind = type(model.get_submodule(slot.end)), len(slot.out_shape), slot.batch_axis
            for blueprint in LIBRARY.values():
                fits = blueprint.source == slot.source and applies(blueprint, slot) is None
                if fits and (blueprint.name, kind) not in seen:
                    seen.add((blueprint.name, kind))
                    yield f"{name} {slot.id} {blueprint.name}", slot, blueprint


CASES = list(cases())


def activation(shape: tuple[int, ...], slot: Slot, batch: int) -> Tensor:
    """One of ``shape`` for each example, laid out as the host does."""
    x = torch.randn(batch, *shape)
    return x.transpose(0, 1).contiguous() if slot.batch_axis else x


def test_the_cases_cover_the_library_and_the_kinds_of_slot() -> None:
    assert {blueprint.name for _, _, blueprint in CASES} == set(LIBRARY)
    modules = [m for model, _ in hosts().values() for m in model.modules() if slot_type(m)]
    assert {type(m).__name__ for m in modules} == {
        "BatchNorm1d",
        "BatchNorm2d",
        "Conv1d",
        "Conv2d",
        "LayerNorm",
        "Linear",
        "MultiheadAttention",
    }


@pytest.mark.parametrize(("slot", "blueprint"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_seed_keeps_the_contract_for_every_batch_size(slot: Slot, blueprint: Blueprint) -> None:
    seed = GraftedSeed(build(blueprint, slot, torch.Generator().manual_seed(0)), slot)
    h = activation(slot.out_shape, slot, 5)
    x = activation(slot.in_shape, slot, 5) if slot.source == "span" else None
    batch = torch.export.Dim("batch", min=2)
    sizes = {slot.batch_axis: batch}
    program = torch.export.export(
        seed, (h, x), dynamic_shapes=(sizes, None if x is None else sizes), strict=False
    )
    symbolic = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    given = symbolic[program.graph_signature.user_inputs[0]]
    result = symbolic[program.graph_signature.user_outputs[0]]
    assert isinstance(given.shape[slot.batch_axis], torch.SymInt)
    for name in ("shape", "dtype", "device"):
        assert str(getattr(result, name)) == str(getattr(given, name))
    assert str(result.stride()) == str(given.stride())
