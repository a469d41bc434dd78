"""A host that is spoilt by itself goes back to a checkpoint of its run, on the record."""

from __future__ import annotations

import logging
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esper.log.event_log import EventLog
from esper.log.journal import JournalStore
from esper.projections.lattice import fold_all
from esper.tolaria.checkpoint import file, keeper, writing
from esper.tolaria.growth import Growth
from esper.tolaria.logged import from_records
from esper.tolaria.rollback import SpoiltError
from esper_events.events import (
    CheckpointWritten,
    HostRolledBack,
    RollbackDecided,
    RunEnded,
    TransitionDecided,
)
from esper_events.keys import SigningKey
from esper_events.rules import Rules
from esper_events.stages import Stage
from support.growth_runs import FAST, Asleep, Loop, OneSeed, bits, events, same, stages, with_

KEY = SigningKey.generate()
RECORDED = with_(FAST, record_every=10)
STEPS = 110
POISON = math.nan
HUGE = 1e38
"""Targets of that size give gradients whose squares are no numbers, and weights that stay."""


class Average:
    """A running mean of the loss, as an update may keep one."""

    def __init__(self) -> None:
        self.mean = torch.zeros(())

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"]


class Run:
    """A loop with a schedule and an average, some of whose batches are poison for its host."""

    def __init__(
        self,
        place: Path,
        poison: dict[int, float],
        controller: Any = None,
        *,
        resume: bool = False,
        rerun: Any = None,
        **more: Any,
    ) -> None:
        self.loop = Loop(dropout=0.2, batchnorm=True)
        self.poison = poison
        self.average = Average()
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.loop.optimizer, 0.999)
        keeping: dict[str, Any] = {"rerun": rerun}
        if rerun is None:
            keeping = {
                "log": EventLog(JournalStore(place / "journal"), KEY, "test", run_dir=place),
                "run_dir": place,
                "resume": resume,
                "checkpoint_every": 20,
                "checkpoint_with": {"schedule": self.schedule},
            }
        settings = more.pop("settings", RECORDED)
        keeping |= {"update": self.update, "update_state": [self.average]} | more
        self.growth: Growth = self.loop.grow(settings, controller or Asleep(), **keeping)
        self.loop.steps = self.growth.resumed_at
        self.before: dict[int, list[Tensor]] = {}

    def update(self, loss: Tensor) -> None:
        self.average.mean = 0.9 * self.average.mean + 0.1 * loss.detach()
        loss.backward()  # type: ignore[no-untyped-call]
        self.loop.optimizer.step()
        self.loop.optimizer.zero_grad()

    def train(self, to: int = STEPS, *, close: bool = True) -> Run:
        loop = self.loop
        while loop.steps < to:
            x, y = loop.batches[loop.steps % len(loop.batches)]
            loop.steps += 1
            batch = x, y * self.poison.get(loop.steps, 1.0)
            loss = loop.loss_fn(batch)
            self.update(loss)
            self.schedule.step()
            self.growth.step(batch, loss)
            self.before[loop.steps] = [t.clone() for t in self.own]
        if close:
            self.growth.close()
        return self

    @property
    def own(self) -> list[Tensor]:
        """What is the host's own: all bits but those of the generator."""
        return [*bits(self.loop)[:-1], self.average.mean]

    @property
    def back(self) -> list[tuple[int, int]]:
        assert self.growth.log.flush(10)
        return [(e.step, e.to_step) for e in events(self.growth, HostRolledBack)]

    @property
    def fine(self) -> bool:
        return all(bool(t.isfinite().all()) for t in self.own)


def culled_by_snapshot(growth: Growth) -> bool:
    return any(event.removal == "snapshot" for event in events(growth, TransitionDecided))


@pytest.fixture(autouse=True)
def _all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every checkpoint stays."""
    for module in (keeper, writing):
        monkeypatch.setattr(module, "KEPT", 1000)


def test_nan_in_the_host_brings_the_last_checkpoint_back(tmp_path: Path) -> None:
    run = Run(tmp_path, {52: POISON}).train(56, close=False)
    assert run.back == [(56, 40)], "found at the next observation, 55, done at the next safe point"
    assert same(run.own, run.before[40])
    assert run.loop.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.999**56)
    run.train()
    assert run.fine
    log = run.growth.records()
    (decided,) = events(run.growth, RollbackDecided)
    assert decided.reason.startswith("held-out loss is nan, where it was ")
    assert [e.step for e in events(run.growth, CheckpointWritten)] == [20, 40, 60, 80, 100]
    ended = log[-1].event
    assert isinstance(ended, RunEnded)
    assert (ended.outcome, ended.lattice) == ("completed", fold_all(log[:-1]).digest())
    rules = Rules()
    assert [rules.admit(record.event) for record in log] == [None] * len(log)


def test_an_optimizer_that_holds_no_numbers_is_spoilt_too(tmp_path: Path) -> None:
    run = Run(tmp_path, {52: HUGE}).train()
    assert run.back == [(56, 40)]
    (decided,) = events(run.growth, RollbackDecided)
    assert decided.reason == "weights or optimizer state are no numbers"
    assert run.fine


def test_an_exploded_host_that_is_finite_is_spoilt_too(tmp_path: Path) -> None:
    run = Run(tmp_path, {}).train(51, close=False)
    with torch.no_grad():
        for parameter in run.loop.model.parameters():
            parameter.mul_(1e4)
    run.train(60, close=False)
    assert run.back == [(56, 40)]
    run.growth.leave()


def test_without_sync_decisions_it_comes_when_the_log_has_it(tmp_path: Path) -> None:
    run = Run(tmp_path, {52: POISON}, settings=with_(RECORDED, sync_decisions=False)).train()
    ((step, to_step),) = run.back
    assert step > 55
    assert to_step in (20, 40), "the last that was written by then"
    assert run.fine


@pytest.mark.parametrize(
    ("controller", "poison"),
    [
        (Asleep, {52: POISON, 93: HUGE}),
        (lambda: OneSeed("layer1", "low_rank"), {92: POISON}),
        (lambda: OneSeed("layer1..head", "widen", again=True), {45: POISON}),
        (
            lambda: OneSeed("layer1..head", "widen", cull_in=Stage.TRAINING, again=True),
            {61: POISON},
        ),
        (lambda: OneSeed("layer1..head", "widen", start=45), {52: POISON}),
    ],
    ids=["twice", "behind a folded seed", "beside a graft", "beside trials", "at a birth"],
)
def test_rerun_and_resume_reach_the_same_bits(
    tmp_path: Path, controller: Any, poison: dict[int, float]
) -> None:
    whole = Run(tmp_path / "whole", poison, controller()).train()
    if controller is Asleep or not culled_by_snapshot(whole.growth):
        assert len(whole.back) == len(poison)
    assert whole.fine
    wanted = bits(whole.loop)
    again = Run(tmp_path, poison, rerun=from_records(whole.growth.records())).train(close=False)
    report = again.growth.rerun_report()
    assert report.identical, report.difference
    assert same(bits(again.loop), wanted)
    first = min(poison)
    for stop in (first - 1, first + 5):
        place = tmp_path / str(stop)
        Run(place, poison, controller()).train(stop, close=False).growth.leave()
        on = Run(place, poison, controller(), resume=True).train()
        assert same(bits(on.loop), wanted), stop
        assert on.back == whole.back
        # From the start, when no file is left of what it went back to.
        for path in (place / file.DIRECTORY).iterdir():
            path.unlink()


def test_a_resume_from_the_start_needs_no_files(tmp_path: Path) -> None:
    poison = {52: POISON}
    wanted = bits(Run(tmp_path / "whole", poison).train().loop)
    run = Run(tmp_path / "killed", poison).train(70, close=False)
    run.growth.leave()
    for path in (tmp_path / "killed" / file.DIRECTORY).glob("*"):
        path.unlink()
    on = Run(tmp_path / "killed", poison, resume=True)
    assert on.growth.resumed_at == 0
    assert same(bits(on.train().loop), wanted)


def test_a_host_that_is_spoilt_again_and_again_ends_the_run(tmp_path: Path) -> None:
    """Twice from each checkpoint, then there is none left."""
    run = Run(tmp_path, dict.fromkeys(range(52, STEPS), POISON))
    with pytest.raises(SpoiltError, match="2 times to step 40, 2 times to step 20"), run.growth:
        run.train()
    assert [to for _, to in run.back] == [40, 40, 20, 20]
    ended = run.growth.records()[-1].event
    assert isinstance(ended, RunEnded)
    assert ended.outcome == "failed"
    assert "no checkpoint is left" in ended.reason


def test_a_host_of_another_shape_is_not_gone_back_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The checkpoint is of before the fossil, and the log would tell what is not so any more."""
    run = Run(tmp_path, {}, OneSeed("layer1..head", "widen", start=21))
    run.train(21, close=False)
    assert run.growth._checkpoints is not None
    run.growth._checkpoints.next_step = 90
    while "fossilized" not in stages(run.growth.records()):
        run.train(run.loop.steps + 1, close=False)
        assert run.growth.log.flush(10)
    run.poison[run.loop.steps + 1] = POISON
    run.train()
    assert run.back == []
    assert caplog.text.count("there is no checkpoint to go back to") == 1
    assert [e.step for e in events(run.growth, CheckpointWritten)] == [20], "none of a spoilt host"


def test_a_rollback_that_is_decided_last_is_still_done(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {52: POISON}).train(55)
    assert run.back == [(55, 40)]
    assert run.fine
    again = Run(tmp_path, {52: POISON}, rerun=from_records(run.growth.records()))
    assert again.train(55, close=False).growth.rerun_report().identical


def test_without_checkpoints_the_run_says_so_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run = Run(tmp_path, {52: POISON}, checkpoint_every=None, checkpoint_with=None).train()
    assert run.back == []
    assert not run.fine
    said = [r.getMessage() for r in caplog.records if "keeps no checkpoints" in r.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("step 55: held-out loss is nan")


def test_no_checkpoint_of_a_host_with_nan_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, {39: POISON}, settings=with_(RECORDED, observe_every=30)).train()
    assert "no checkpoint of step 40 is kept: its host holds no numbers" in caplog.text
    assert run.back == [(61, 20)]
    assert run.fine


def test_rollbacks_can_be_turned_off(tmp_path: Path) -> None:
    run = Run(tmp_path, {52: POISON}, settings=with_(RECORDED, rollbacks=0)).train()
    assert run.back == []
    assert events(run.growth, TransitionDecided) == []


def strike(growth: Growth, step: int, chaos: int) -> None:
    """Let seeds raise from now on, or hold no numbers: by chance, and the same in every run."""
    engine = growth._engine
    if engine is None:
        return
    for number, struck in list(engine.transitions.trials.items()):
        chance = random.Random(f"{chaos}/{step}/{number}").random()
        if chance < 0.02:

            def fail(*_: object) -> None:
                if torch.is_grad_enabled():
                    raise RuntimeError("wild")

            struck.seed.body.register_forward_pre_hook(fail)
        elif chance < 0.04:
            with torch.no_grad():
                for parameter in struck.seed.parameters:
                    parameter.fill_(math.nan)


@pytest.mark.parametrize("chaos", range(3))
def test_wild_losses_and_wild_seeds_end_well_and_run_again_to_the_same_bits(
    tmp_path: Path, chaos: int, caplog: pytest.LogCaptureFixture
) -> None:
    steps, fates = 200, random.Random(chaos)
    poison = {step: POISON for step in range(25, steps) if fates.random() < 0.025}
    settings = with_(RECORDED, rollbacks=100)

    def trained(**more: Any) -> Run:
        controller = OneSeed("layer1..head", "widen", again=True, start=15)
        if "rerun" not in more:
            more["checkpoint_every"] = 3
        run = Run(tmp_path / "run", poison, controller, settings=settings, **more)
        while run.loop.steps < steps:
            run.train(run.loop.steps + 1, close=False)
            strike(run.growth, run.loop.steps, chaos)
        return run

    run = trained()
    run.growth.close()
    log = run.growth.records()
    ended = log[-1].event
    assert isinstance(ended, RunEnded)
    assert (ended.outcome, ended.lattice) == ("completed", fold_all(log[:-1]).digest())
    assert run.back or culled_by_snapshot(run.growth)
    helpless = "there is no checkpoint to go back to" in caplog.text
    assert run.fine or helpless or max(poison) > steps - RECORDED.observe_every - 2
    again = trained(rerun=from_records(log))
    report = again.growth.rerun_report()
    assert report.identical, report.difference
