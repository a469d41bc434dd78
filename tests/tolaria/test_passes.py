"""Several seeds on trial in a run: who shares a pass, what is told, and the same bits again."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esper.kasmina import bodies, shared
from esper.log.event_log import EventLog
from esper.log.journal import JournalStore
from esper.tamiyo.interface import Advance, Cull, Germinate, Observation, Proposal
from esper.tolaria import passes
from esper.tolaria.growth import Growth
from esper.tolaria.logged import from_records
from esper.tolaria.settings import GrowthSettings
from esper_events.events import (
    CheckpointWritten,
    PassesSeparated,
    TransitionApplied,
    TransitionDecided,
    TrialMeasured,
)
from esper_events.keys import SigningKey
from esper_events.stages import Stage
from support.growth_runs import FAST, Asleep, Batch, Loop, bits, events, plain, same, with_

PLACES = [("layer1..head", "widen"), ("layer1", "low_rank"), ("head", "bottleneck_mlp")]
SETTINGS = with_(FAST, record_every=10)
ROUND = 60
"""Steps from one tournament to the next: seeds enter their trials at about the 30th, one after the
other, and learn together until the 50th."""
STEPS = 115


@dataclass
class Tournaments:
    """At the begin of every round a seed in each place; all are culled when they have learnt."""

    begun: int = 0
    ended: list[int] = field(default_factory=list)

    def state(self) -> tuple[int, list[int]]:
        """When the latest round began, and which seeds have been ended."""
        return self.begun, self.ended

    def restore(self, state: tuple[int, list[int]]) -> None:
        """Go on from there."""
        self.begun, self.ended = state[0], list(state[1])

    def decide(self, observation: Observation) -> list[Proposal]:
        """Proposals as told above."""
        age = observation.step % ROUND
        if age == 5:
            return [Germinate(slot, blueprint, "as told") for slot, blueprint in PLACES]
        free = [seed for seed in observation.seeds if not seed.pending]
        if age >= 50:
            self.ended += [seed.id for seed in free]
            return [Cull(seed.id, "as told") for seed in free]
        return [Advance(s.id, "as told") for s in free if s.stage is Stage.GERMINATED and s.ready]


class Counting(Loop):
    """A loop that reads its loss where ``reads`` says so, which no vmap can run."""

    def __init__(self, reads: str = "") -> None:
        super().__init__(dropout=0.2, batchnorm=True)
        self.reads = reads

    def loss_fn(self, batch: Batch) -> Tensor:
        loss = super().loss_fn(batch)
        if self.reads == "always" or (self.reads == "evaluation" and not self.model.training):
            return loss * min(1.0, 1.0 + abs(loss.item()))
        return loss


def run(
    settings: GrowthSettings = SETTINGS, *, reads: str = "", steps: int = STEPS, **more: Any
) -> tuple[Counting, Growth]:
    loop = Counting(reads)
    growth = loop.grow(settings, Tournaments(), **more)
    loop.run(steps)
    if "rerun" not in more:
        growth.close()
    return loop, growth


def seed_weights(growth: Growth) -> list[str]:
    return [event.seed_weights for event in events(growth, TransitionApplied)]


def test_the_host_keeps_its_bits_and_each_seed_learns_as_it_would_alone() -> None:
    loop, growth = run()
    _, apart = run(with_(SETTINGS, share=1))
    assert same(bits(loop), plain(STEPS, dropout=0.2, batchnorm=True))
    assert not events(growth, PassesSeparated)
    together, alone = (events(g, TrialMeasured) for g in (growth, apart))
    assert len(together) == len(alone) > 20
    for one, other in zip(together, alone, strict=True):
        assert (one.step, one.seed) == (other.step, other.seed)
        assert one.figures == pytest.approx(other.figures, rel=1e-3, abs=1e-4)
    assert any(event.figures["gain"] > 0.01 for event in together)


def test_as_many_share_a_pass_as_the_settings_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    honest = passes.shared_step

    def counted(model: Any, seeds: Any, *rest: Any) -> Any:
        sizes.append(len(seeds))
        return honest(model, seeds, *rest)

    monkeypatch.setattr(passes, "shared_step", counted)
    run(with_(SETTINGS, share=1), steps=40)
    assert sizes == []
    run(with_(SETTINGS, share=2), steps=40)
    assert set(sizes) == {2}, "the third has a pass of its own"


@pytest.mark.parametrize("reads", ["", "always", "evaluation"])
def test_a_rerun_runs_the_same_passes(reads: str) -> None:
    first, growth = run(reads=reads)
    loop = Counting(reads)
    again = loop.grow(SETTINGS, Asleep(), rerun=from_records(growth.records()))
    loop.run(STEPS)
    report = again.rerun_report()
    assert report.identical, report.difference
    assert report.checked > STEPS // 10
    assert same(bits(first), bits(loop))


class Equals(Tournaments):
    """Seven equal seeds at the begin, and no end."""

    def decide(self, observation: Observation) -> list[Proposal]:
        """Proposals as told above."""
        if observation.step == 5:
            return [Germinate("layer1", "low_rank", "as told")] * 7
        ready = [s for s in observation.seeds if s.stage is Stage.GERMINATED and s.ready]
        return [Advance(seed.id, "as told") for seed in ready if not seed.pending]


def test_a_rerun_computes_equal_seeds_in_one_call_as_the_run_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[int] = []
    honest = bodies.residual_graft

    def counted(h: Tensor, x: Tensor, down: Tensor, *rest: Any, **more: Any) -> Tensor:
        taken.append(len(down))
        return honest(h, x, down, *rest, **more)

    monkeypatch.setattr(bodies, "residual_graft", counted)
    first = Counting()
    growth = first.grow(SETTINGS, Equals())
    first.run(STEPS)
    growth.close()
    assert {6, 7} <= set(taken)
    taken.clear()
    loop = Counting()
    again = loop.grow(SETTINGS, Asleep(), rerun=from_records(growth.records()))
    loop.run(STEPS)
    report = again.rerun_report()
    assert report.identical, report.difference
    assert taken and same(bits(first), bits(loop))


def test_a_rerun_that_shares_where_the_run_did_not_is_told() -> None:
    _, growth = run(reads="always")
    loop = Counting()
    again = loop.grow(SETTINGS, Asleep(), rerun=from_records(growth.records()))
    loop.run(STEPS)
    difference = again.rerun_report().difference
    assert difference is not None and "the pass of seeds on trial is shared" in difference.what


def test_what_cannot_be_shared_is_found_once_and_trains_as_separate_passes_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "esper.tolaria"):
        loop, growth = run(reads="always")
    told = events(growth, PassesSeparated)
    assert sorted(event.purpose for event in told) == ["measuring", "training"]
    assert all("cannot share a pass here" in event.reason for event in told)
    assert sum("one pass for each seed" in record.message for record in caplog.records) == 2
    other, apart = run(with_(SETTINGS, share=1), reads="always")
    assert same(bits(loop), bits(other))
    assert seed_weights(growth) == seed_weights(apart)
    assert [e.figures for e in events(growth, TrialMeasured)] == [
        e.figures for e in events(apart, TrialMeasured)
    ]


def test_training_and_measuring_are_told_apart() -> None:
    _, growth = run(reads="evaluation")
    assert [event.purpose for event in events(growth, PassesSeparated)] == ["measuring"]


def failing(growth: Growth, number: int, *, in_training: bool) -> None:
    """Let the body of a seed fail in one of its two modes from now on."""
    assert growth.engine is not None
    body = growth.engine.trials[number].seed.body
    honest = body.forward

    def forward(x: Tensor) -> Tensor:
        if body.training is in_training:
            raise ValueError("not with me")
        result: Tensor = honest(x)
        return result

    body.forward = forward  # type: ignore[method-assign]


@pytest.mark.parametrize("reads", ["", "always"])
def test_a_seed_that_fails_ends_alone(reads: str) -> None:
    loop = Counting(reads)
    growth = loop.grow(SETTINGS, Tournaments())
    loop.run(38)
    failing(growth, 1, in_training=True)
    loop.run(STEPS - 38)
    growth.close()
    culled = [e for e in events(growth, TransitionDecided) if e.target is Stage.CULLED]
    assert culled[0].seed == 1 and culled[0].reason == "its shadow pass failed: not with me"
    assert [e.reason for e in culled[1:3]] == ["as told"] * 2
    assert same(bits(loop), plain(STEPS, dropout=0.2, batchnorm=True))
    assert len(events(growth, PassesSeparated)) == (2 if reads else 0)


def test_a_seed_that_cannot_be_measured_learns_on_to_its_end_so_that_a_rerun_is_the_same() -> None:
    loop = Counting()
    growth = loop.grow(SETTINGS, Tournaments())
    loop.run(38)
    failing(growth, 1, in_training=False)
    loop.run(STEPS - 38)
    growth.close()
    decided = events(growth, TransitionDecided)
    assert "its measurement failed: not with me" in [event.reason for event in decided]
    again = Counting()
    report = again.grow(SETTINGS, Asleep(), rerun=from_records(growth.records()))
    again.run(STEPS)
    assert report.rerun_report().identical, report.rerun_report().difference


def test_no_memory_for_a_shared_pass_ends_its_trials_and_not_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("no room for 3 seeds")

    loop = Counting()
    growth = loop.grow(SETTINGS, Tournaments())
    loop.run(38)
    monkeypatch.setattr(shared, "_losses", full)
    loop.run(STEPS - 38)
    growth.close()
    culled = [e for e in events(growth, TransitionDecided) if e.target is Stage.CULLED]
    assert {e.reason for e in culled[:3]} == {"its shadow pass failed: no room for 3 seeds"}
    assert same(bits(loop), plain(STEPS, dropout=0.2, batchnorm=True))


def test_a_loss_that_is_no_number_stops_its_seed_alone() -> None:
    loop = Counting()
    growth = loop.grow(SETTINGS, Tournaments())
    loop.run(38)
    assert growth.engine is not None
    for parameter in growth.engine.trials[2].seed.parameters:
        parameter.data.fill_(math.nan)
    loop.run(STEPS - 38)
    growth.close()
    culled = [e for e in events(growth, TransitionDecided) if e.target is Stage.CULLED]
    assert (culled[0].seed, culled[0].reason) == (2, "its shadow loss is nan")
    assert {e.reason for e in culled[1:]} == {"as told"}


@pytest.mark.parametrize("reads", ["", "always"])
def test_a_resumed_run_remembers_which_way_its_passes_ran(reads: str, tmp_path: Path) -> None:
    key, whole = SigningKey.generate(), tmp_path / "whole"

    def begin(place: Path, resume: bool = False) -> tuple[Counting, Growth]:
        log = EventLog(JournalStore(place / "journal"), key, "test", run_dir=place)
        loop = Counting(reads)
        more: dict[str, Any] = {"log": log, "run_dir": place, "resume": resume}
        growth = loop.grow(SETTINGS, Tournaments(), checkpoint_every=10, **more)
        loop.steps = growth.resumed_at
        return loop, growth

    first, growth = begin(whole)
    for _ in range(STEPS):
        first.run(1)
        assert growth._checkpoints is not None
        growth._checkpoints.close()
    growth.close()
    kept = [event.step for event in events(growth, CheckpointWritten)]
    assert any(52 <= step < 65 for step in kept), "after the first tournament, before the second"

    cut, killed = begin(tmp_path / "cut")
    for _ in range(100):
        cut.run(1)
        assert killed._checkpoints is not None
        killed._checkpoints.close()
    killed.log.flush(5.0)
    killed.log.close()
    resumed, again = begin(tmp_path / "cut", resume=True)
    assert 0 < again.resumed_at < 100
    resumed.run(STEPS - again.resumed_at)
    again.close()
    assert same(bits(resumed), bits(first))
    assert len(events(again, PassesSeparated)) == (2 if reads else 0)
    assert seed_weights(again) == seed_weights(growth)
