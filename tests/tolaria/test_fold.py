"""Folded fossils in a run: on record, in every account of it, and the same in a re-run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from rich.console import Console

import esper
from esper.cli.story import Story
from esper.cli.view import seed_table
from esper.kasmina.digest import model_digest
from esper.kasmina.graft import GraftPoint
from esper.kasmina.lattice import install_fossil
from esper.log.event_log import EventLog
from esper.log.memory import MemoryStore
from esper.projections.catalogue import PROJECTIONS
from esper.projections.lattice import fold_all
from esper.tamiyo.interface import Germinate, Observation, Proposal
from esper.tolaria.catch_up import CatchUpLog
from esper.tolaria.logged import LoggedRun, from_records
from esper.tolaria.settings import GrowthSettings
from esper.tolaria.trials import new_seed
from esper_events.events import Record, SeedFolded, TransitionApplied, TransitionDecided
from esper_events.keys import SigningKey
from esper_events.rules import Rules
from esper_events.stages import Stage
from support.growth_runs import FAST, Asleep, Loop, OneSeed, bits, events, grow, same, with_

STEPS = 130
HOST: dict[str, Any] = {"dropout": 0.2, "batchnorm": True, "seed": 12}
"""On its way the gates keep two low-rank seeds, one after the other."""
RECORDED = with_(record_every=10, shadow_confidence=0.01)


class InTurn(OneSeed):
    """One seed after the other, in the host's two layers by turns."""

    def decide(self, observation: Observation) -> list[Proposal]:
        proposals = super().decide(observation)
        if any(isinstance(proposal, Germinate) for proposal in proposals):
            self.slot = "head" if self.slot == "layer1" else "layer1"
        return proposals


def folding(again: bool = False) -> OneSeed:
    return (InTurn if again else OneSeed)("layer1", "low_rank", again=again)


def trained(settings: GrowthSettings = RECORDED, again: bool = False) -> tuple[Loop, list[Record]]:
    growth, loop = grow(settings, folding(again), STEPS, **HOST)
    return loop, growth.records()


def folds(records: list[Record]) -> list[SeedFolded]:
    return [record.event for record in records if isinstance(record.event, SeedFolded)]


def rerun(logged: LoggedRun) -> Loop:
    loop = Loop(**HOST)
    loop.grow(RECORDED, Asleep(), rerun=logged)
    loop.run(STEPS)
    return loop


def test_a_fossil_on_a_linear_layer_leaves_an_ordinary_host_behind() -> None:
    growth, loop = grow(FAST, folding(), STEPS)
    (event,) = events(growth, SeedFolded)
    assert (event.seed, event.slot, event.module) == (0, "layer1", "layer1")
    assert 0.0 <= event.difference <= 1e-6 * event.largest
    assert event.before != event.after
    fresh = Loop().model
    assert not any(isinstance(module, GraftPoint) for module in loop.model.modules())
    assert loop.model.state_dict().keys() == fresh.state_dict().keys()
    assert loop.optimizer.param_groups[0]["params"] == list(loop.model.parameters())
    assert set(loop.optimizer.state) == set(loop.model.parameters())
    assert len(growth.fossils) == 1
    (row,) = growth.seed_rows()
    assert (row.stage, row.folded, row.parameters) == (Stage.FOSSILIZED, True, 0)
    assert growth.engine is not None
    assert growth.engine.watch.budget == FAST.max_added_parameters


def test_folding_can_be_turned_off_and_is_not_tried_where_nothing_composes() -> None:
    for settings, seed in (
        (with_(fold=False), folding()),
        (FAST, OneSeed("layer1..head", "widen")),
        (FAST, OneSeed("head", "bottleneck_mlp")),
    ):
        growth, loop = grow(settings, seed, STEPS)
        assert events(growth, SeedFolded) == []
        assert any(isinstance(module, GraftPoint) for module in loop.model.modules())
        (row,) = growth.seed_rows()
        assert not row.folded
        assert row.parameters > 0
        assert growth.engine is not None
        assert growth.engine.watch.budget == settings.max_added_parameters - row.parameters


def test_a_folded_seed_shows_as_such_and_costs_nothing_in_the_table() -> None:
    for settings, shown in ((FAST, ("folded", "0")), (with_(fold=False), ("fossilized", "4"))):
        growth, _ = grow(settings, folding(), STEPS)
        out = io.StringIO()
        Console(file=out, width=120, color_system=None).print(seed_table(growth.seed_rows()))
        (line,) = (line for line in out.getvalue().splitlines() if "layer1" in line)
        assert (line.split()[3], line.split()[5]) == shown


def test_a_refusal_leaves_the_fossil_where_it_is(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop()
    loop.model.layer1.register_forward_hook(lambda *_: None)  # type: ignore[union-attr, operator]
    growth = loop.grow(FAST, folding())
    with caplog.at_level("INFO", logger="esper.tolaria"):
        loop.run(STEPS)
    growth.close()
    assert events(growth, SeedFolded) == []
    assert isinstance(loop.model.get_submodule("layer1"), GraftPoint)
    assert "seed 0 stays beside layer1: a hook of the user's" in caplog.text


def test_live_state_and_replay_agree_at_every_event_with_a_fold() -> None:
    growth, _ = grow(RECORDED, folding(again=True), STEPS, **HOST)
    records = growth.records()
    assert [event.slot for event in folds(records)] == ["layer1", "head"]
    assert fold_all(records) == growth.state(len(records))
    rules = Rules()
    assert [rules.admit(record.event) for record in records] == [None] * len(records)
    for projection in PROJECTIONS.values():
        state = projection.fold_all(records)
        for index in range(0, len(records), 7):
            early = projection.fold_all(records[:index])
            assert projection.fold_all(records[index:], early).digest() == state.digest()


def test_a_fold_is_told_behind_the_transition_that_made_the_fossil() -> None:
    _, records = trained()
    (place,) = (n for n, r in enumerate(records) if isinstance(r.event, SeedFolded))
    before = records[place - 1].event
    assert isinstance(before, TransitionApplied)
    (decided,) = (
        r.event
        for r in records
        if isinstance(r.event, TransitionDecided) and r.event.decision == before.decision
    )
    assert decided.target is Stage.FOSSILIZED
    story = Story()
    lines = [line for record in records if (line := story.tell(record))]
    assert any("seed 0 (low_rank in layer1) folded into layer1" in line for line in lines)
    assert any("evaluating -> fossilized, 4 parameters more" in line for line in lines)


@pytest.mark.parametrize("again", [False, True], ids=["once", "one after the other"])
def test_a_rerun_folds_as_its_log_tells_to_the_same_bits(again: bool) -> None:
    first, records = trained(again=again)
    second = rerun(from_records(records))
    assert second.growth is not None
    report = second.growth.rerun_report()
    assert report.identical, report.difference
    assert same(bits(first), bits(second))
    assert second.growth.state(0).folded == fold_all(records).folded


def test_a_rerun_follows_the_log_and_not_the_settings() -> None:
    first, records = trained(with_(RECORDED, fold=False))
    second = rerun(from_records(records))
    assert second.growth is not None
    assert second.growth.rerun_report().identical
    assert same(bits(first), bits(second))


def test_a_fold_with_another_digest_is_found() -> None:
    _, records = trained()
    forged = [
        Record(r.index, msgspec.structs.replace(r.event, after="0" * 64))
        if isinstance(r.event, SeedFolded)
        else r
        for r in records
    ]
    growth = rerun(from_records(forged)).growth
    assert growth is not None
    difference = growth.rerun_report().difference
    assert difference is not None
    assert "module layer1 with seed 0 folded in" in difference.what


def test_a_fold_that_does_not_happen_again_is_found() -> None:
    _, records = trained()
    loop = Loop(**HOST)
    growth = loop.grow(RECORDED, Asleep(), rerun=from_records(records))
    loop.model.layer1.register_forward_hook(lambda *_: None)  # type: ignore[union-attr, operator]
    loop.run(STEPS)
    difference = growth.rerun_report().difference
    assert difference is not None
    assert "folded" in difference.what


def test_a_second_graft_starts_from_the_folded_host() -> None:
    loop, records = trained(again=True)
    assert len(folds(records)) == 2
    assert not any(isinstance(module, GraftPoint) for module in loop.model.modules())
    assert loop.optimizer.param_groups[0]["params"] == list(loop.model.parameters())
    assert set(loop.optimizer.state) == set(loop.model.parameters())


def test_a_folded_model_is_saved_and_loaded_like_any_other(tmp_path: Path) -> None:
    _, loop = grow(FAST, folding(), STEPS)
    esper.save(loop.model, tmp_path / "model.safetensors")
    fresh = esper.load(Loop(seed=3).model, tmp_path / "model.safetensors")
    assert model_digest(fresh) == model_digest(loop.model)
    buffer = io.BytesIO()
    torch.save(loop.model.state_dict(), buffer)
    buffer.seek(0)
    plain = Loop(seed=4).model
    plain.load_state_dict(torch.load(buffer, weights_only=True))
    x = loop.batches[0][0]
    assert torch.equal(plain.eval()(x), loop.model.eval()(x))


def test_the_grown_shape_from_the_start_keeps_the_seed() -> None:
    growth, _ = grow(FAST, folding(), STEPS)
    (trial,) = growth.fossils
    model = Loop().model
    install_fossil(model, new_seed(0, trial.seed.slot, trial.blueprint, 0))
    point = model.get_submodule("layer1")
    assert isinstance(point, GraftPoint)
    assert sum(p.numel() for p in point.seeds.parameters()) > 0


@pytest.mark.parametrize("beyond", [-5, 5])
def test_a_resumed_run_folds_on_its_way_as_the_whole_one_did(beyond: int) -> None:
    whole, records = trained()
    (fold,) = folds(records)
    store, key = MemoryStore(), SigningKey.generate()
    killed = Loop(**HOST)
    first = killed.grow(RECORDED, folding(), log=EventLog(store, key, "test"))
    killed.run(fold.step + beyond)
    first.log.close()
    again = Loop(**HOST)
    log = CatchUpLog(EventLog(store, key, "test"))
    second = again.grow(RECORDED, folding(), log=log)
    again.run(STEPS)
    second.close()
    (refolded,) = folds(second.records())
    assert msgspec.structs.replace(refolded, time=0.0) == msgspec.structs.replace(fold, time=0.0)
    assert same(bits(again), bits(whole))
