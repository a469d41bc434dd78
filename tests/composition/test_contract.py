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
from esper.kasmina.slot_types import known_types
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


class Recurrent(nn.Module):
    """Words ``[batch, time]`` or ``[time, batch]`` through recurrent layers, a block and cells."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.bag = nn.EmbeddingBag(11, 8)
        self.layers = nn.ModuleList(
            kind(8, 8, batch_first=batch_first) for kind in (nn.RNN, nn.GRU, nn.LSTM)
        )
        self.norm = nn.RMSNorm(8)
        self.blocks = nn.ModuleList([Block()])
        self.cells = nn.ModuleList([nn.RNNCell(8, 8), nn.GRUCell(8, 8), nn.LSTMCell(8, 8)])
        self.axis = 1 if batch_first else 0

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for layer in self.layers:
            h, _ = layer(h)
        h = self.blocks[0](self.norm(h)).mean(self.axis) + self.bag(x if self.axis else x.T)
        for cell in self.cells:
            h = cell(h)
        result: Tensor = h[0]
        return result


class Block(nn.Module):
    """``[..., 8]`` to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x))


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
        "words": (Recurrent(batch_first=True), torch.randint(11, (5, 7))),
        "words, time first": (Recurrent(batch_first=False), torch.randint(11, (7, 5))),
    }


def cases() -> Iterator[tuple[str, Slot, Blueprint]]:
    """Every blueprint in each kind of slot that it fits.

    A seed sees no more of its slot than the signature: of kinds with the same one, one is tried.
    """
    seen = set()
    for name, (model, x) in hosts().items():
        for slot in find_slots(model, lambda model=model, x=x: model(x)).slots.values():
            kind = slot.out_axis, len(slot.out_shape), slot.batch_axis, slot.outputs > 0
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


def test_the_cases_cover_the_library_and_every_kind_of_slot_is_found() -> None:
    assert {blueprint.name for _, _, blueprint in CASES} == set(LIBRARY)
    kinds = set()
    for model, x in hosts().values():
        slots = find_slots(model, lambda model=model, x=x: model(x)).slots.values()
        kinds |= {type(model.get_submodule(slot.end)) for slot in slots}
    known = {name for name in known_types().split(", ") if hasattr(nn, name)}  # not what tests add
    assert {kind.__name__ for kind in kinds} == known | {"Block"}


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
