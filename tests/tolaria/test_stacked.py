"""Growth where something has grown already, and on every kind of slot, through whole runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.kasmina.digest import model_digest
from esper.kasmina.graft import GraftedSeed
from esper.portable.storage import growth_of
from esper.projections.lattice import fold_all
from esper.tamiyo.interface import Controller
from esper.tolaria import gates
from esper.tolaria.gates import GateResult
from esper.tolaria.growth import Growth
from esper.tolaria.logged import from_records
from esper_events.events import LatticeDeclared
from esper_events.stages import Stage
from support.grown import equal, outputs
from support.growth_runs import FAST, Asleep, Loop, OneSeed, events, same, with_

EASY = with_(FAST, record_every=10)


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every seed pass the gates that ask for a gain: these tests are about its place."""
    for gate in ("shadow", "fork"):
        monkeypatch.setattr(gates, gate, lambda *_: GateResult(True, "let through"))


class Damped(nn.Module):
    """``[batch, features]`` to the same, and how much it damped."""

    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        return x * 0.9, 0.1


esper.register_slot_type(Damped, feature_axis=-1)


class Mixed(nn.Module):
    """``[batch, 6]`` to ``[batch, 3]`` through a convolution, attention and a declared type."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 3, padding=1)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.damped, self.head = Damped(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x.unsqueeze(1)).transpose(1, 2)
        h, _ = self.attention(query=h, key=h, value=h)
        h, _ = self.damped(h.mean(1))
        result: Tensor = self.head(h)
        return result


class MixedLoop(Loop):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.model = Mixed()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)


def trained(loop: Loop, controller: Controller, steps: int) -> Growth:
    growth = loop.grow(EASY, controller)
    loop.run(steps)
    growth.close()
    return growth


def rerun_is_identical(growth: Growth, first: Loop, second: Loop, steps: int) -> None:
    again = second.grow(EASY, Asleep(), rerun=from_records(growth.records()))
    second.run(steps)
    report = again.rerun_report()
    assert report.identical, report.difference
    assert report.final_weights == model_digest(first.model)


def leaves_as_it_is(loop: Loop, fresh: Loop, where: Path) -> None:
    """What has grown is exported, saved and loaded with the same outputs."""
    x = loop.batches[0][0]
    assert equal(outputs(esper.export(loop.model), x), outputs(loop.model, x))
    esper.save(loop.model, where / "grown")
    esper.load(fresh.model, where / "grown")
    assert list(fresh.model.state_dict()) == list(loop.model.state_dict())
    assert equal(outputs(fresh.model, x), outputs(loop.model, x))


def fossils(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if isinstance(m, GraftedSeed) and not m.isolated]


@pytest.mark.parametrize("slot", ["conv", "attention", "conv..attention", "damped", "head"])
def test_every_kind_of_slot_grows_in_a_run_that_can_be_repeated(slot: str, tmp_path: Path) -> None:
    loop = MixedLoop()
    growth = trained(loop, OneSeed(slot, "widen" if ".." in slot else "low_rank"), 80)
    assert [trial.seed.slot.id for trial in growth.fossils] == [slot]
    (declared,) = events(growth, LatticeDeclared)
    assert {"conv", "attention", "damped", "head", "damped..head"} <= {s.id for s in declared.slots}
    rerun_is_identical(growth, loop, MixedLoop(), 80)
    leaves_as_it_is(loop, MixedLoop(), tmp_path)


@pytest.mark.parametrize(
    ("slot", "blueprint"), [("layer1", "bottleneck_mlp"), ("layer1..head", "widen")]
)
def test_a_slot_that_holds_a_fossil_germinates_again(
    slot: str, blueprint: str, tmp_path: Path
) -> None:
    loop = Loop()
    growth = trained(loop, OneSeed(slot, blueprint, again=True), 230)
    numbers = [trial.seed.id for trial in growth.fossils]
    assert len(numbers) > 1
    place = slot.rpartition(".")[2]
    assert fossils(loop.model) == [f"{place}.seeds.{number}" for number in numbers]
    assert [record.seed for record in growth_of(loop.model)] == numbers
    folded = fold_all(growth.records())
    kept = [number for number, seed in folded.seeds.items() if seed.stage.value == "fossilized"]
    assert kept == numbers
    assert folded.digest() == growth.state(folded.records).digest()
    rerun_is_identical(growth, loop, Loop(), 230)
    leaves_as_it_is(loop, Loop(), tmp_path)


def grown_once(names: Sequence[str]) -> Loop:
    loop = Loop()
    growth = trained(loop, OneSeed(names[0], names[1]), 80)
    assert len(growth.fossils) == 1
    return loop


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("layer1", "bottleneck_mlp"), ("layer1", "bottleneck_mlp")),
        (("layer1", "bottleneck_mlp"), ("layer1..head", "widen")),
        (("layer1..head", "widen"), ("layer1..head", "widen")),
        (("head", "bottleneck_mlp"), ("layer1..layer1", "widen")),
    ],
)
def test_a_second_run_grows_in_the_slots_of_the_first(
    first: tuple[str, str], second: tuple[str, str], tmp_path: Path
) -> None:
    loop, twin = grown_once(first), grown_once(first)
    slots = esper.slots(loop.model, loop.batches[0]).slots
    assert list(slots) == list(esper.slots(Loop().model, loop.batches[0]).slots)
    growth = trained(loop, OneSeed(*second), 100)
    assert [trial.seed.slot.id for trial in growth.fossils] == [second[0]]
    assert [record.seed for record in growth_of(loop.model)] == [0, 1]
    assert [record.order for record in growth_of(loop.model)] == [0, 1]
    rerun_is_identical(growth, loop, twin, 100)
    leaves_as_it_is(loop, Loop(), tmp_path)


def test_a_trial_on_a_grown_host_leaves_no_trace() -> None:
    alone, beside = (grown_once(("layer1", "bottleneck_mlp")) for _ in range(2))
    alone.growth = None
    alone.run(60)
    trained(beside, OneSeed("layer1", "low_rank", cull_in=Stage.GRAFTING), 60)
    assert same(list(alone.model.state_dict().values()), list(beside.model.state_dict().values()))
