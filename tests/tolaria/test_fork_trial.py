from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina.host_update import HostUpdate
from esper.tolaria import gates
from esper.tolaria.fork_trial import ForkTrial
from esper.tolaria.gates import GateResult
from esper.tolaria.statistics import PairedGain
from esper_events.events import GateMeasured
from esper_events.stages import Gate, Stage
from support.growth_runs import FAST, Loop, OneSeed, events, grow, plain, same, stages, with_

RESTLESS: dict[str, Any] = {"dropout": 0.3, "batchnorm": True}


def fork_of(loop: Loop, optimizer: torch.optim.Optimizer | None = None) -> ForkTrial:
    chosen = optimizer or loop.optimizer

    def update(loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        chosen.step()
        chosen.zero_grad()

    return ForkTrial(loop.model, chosen, loop.loss_fn, HostUpdate(update))


def weights(model: nn.Module) -> list[Tensor]:
    """The host's tensors; those of seeds are left out."""
    state = model.state_dict()
    return [tensor.clone() for name, tensor in state.items() if ".seeds." not in name]


def follow(loop: Loop, fork: ForkTrial, steps: int) -> None:
    for _ in range(steps):
        batch = loop.batches[loop.steps % len(loop.batches)]
        loop.run(1)
        fork.follow(batch)
        fork.mark()


def test_a_seed_that_adds_nothing_gains_exactly_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A against A: the grown host and its fork are the same training, bit for bit."""
    monkeypatch.setattr(gates, "shadow", lambda *_: GateResult(True, "held open"))
    loop = Loop(**RESTLESS)
    settings = with_(evaluate_steps=30)
    growth = loop.grow(settings, OneSeed("layer1..head", "widen"))
    assert growth.engine is not None
    while not growth.engine.trials:
        loop.run(1)
    # Its last projection is zero as it was born, and stays so.
    growth.engine.trials[0].seed.body.requires_grad_(False)
    checked = 0
    for _ in range(80):
        loop.run(1)
        fork = growth.engine.transitions.fork
        if fork is not None:
            live = weights(loop.model)
            with fork._branch.entered():
                assert same(weights(loop.model), live)
            checked += 1
    growth.close()
    assert checked > 30
    (verdict,) = [g for g in events(growth, GateMeasured) if g.gate is Gate.FORK]
    assert (verdict.figures["gain"], verdict.figures["lower"]) == (0.0, 0.0)
    assert not verdict.passed
    assert verdict.reason == "not clearly better than the fork"


def test_the_fork_is_the_host_as_it_would_have_been() -> None:
    loop = Loop(**RESTLESS)
    loop.run(7)
    fork = fork_of(loop)
    with torch.no_grad():
        for parameter in loop.model.parameters():
            parameter.add_(0.5)
    follow(loop, fork, 20)
    assert fork.steps == 20
    assert not same(plain(27, **RESTLESS)[:4], weights(loop.model)[:4])
    fork.adopt()
    wanted = plain(27, **RESTLESS)
    assert same(wanted[: len(weights(loop.model))], weights(loop.model))


def test_a_schedule_of_the_learning_rate_holds_for_the_fork_too() -> None:
    def scheduled(loop: Loop, fork: ForkTrial | None, steps: int) -> None:
        scheduler = torch.optim.lr_scheduler.ExponentialLR(loop.optimizer, 0.9)
        for _ in range(steps):
            batch = loop.batches[loop.steps % len(loop.batches)]
            loop.run(1)
            scheduler.step()
            if fork is not None:
                fork.follow(batch)
                fork.mark()

    loop, alone = Loop(), Loop()
    fork = fork_of(loop)
    scheduled(loop, fork, 15)
    fork.adopt()
    scheduled(alone, None, 15)
    assert same(weights(loop.model), weights(alone.model))
    assert loop.optimizer.param_groups[0]["lr"] == alone.optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("end", ["adopt", "discard"])
def test_the_optimizers_hook_goes_with_the_fork(end: str) -> None:
    loop = Loop()
    registered = loop.optimizer._optimizer_step_post_hooks
    fork = fork_of(loop)
    assert len(registered) == 1
    getattr(fork, end)()
    assert len(registered) == 0


def test_discarding_leaves_the_host_alone() -> None:
    loop = Loop()
    fork = fork_of(loop)
    follow(loop, fork, 10)
    fork.discard()
    assert same(weights(loop.model), plain(10)[:4])


def test_a_fork_that_was_never_measured_tells_of_no_gain() -> None:
    fork = fork_of(Loop())
    assert not fork.measured
    assert fork.gain() == PairedGain(-math.inf, math.inf, 0)
    fork.discard()


def test_how_far_a_gain_wanders_widens_its_interval() -> None:
    loop = Loop()
    fork = fork_of(loop)
    fork._measured = [([1.0, 1.2, 1.1], [0.5, 0.6, 0.55])]
    steady = fork.gain()
    assert steady.relative == pytest.approx(0.5)
    fork._measured = [
        ([1.0, 1.2, 1.1], [0.3, 0.36, 0.33]),
        ([1.0, 1.2, 1.1], [0.7, 0.84, 0.77]),
    ]
    wandering = fork.gain()
    assert wandering.relative == pytest.approx(0.5)
    assert wandering.error > steady.error + 0.2
    fork.discard()


def test_a_grown_host_that_broke_loses_and_a_fork_that_broke_does_not_take_its_place() -> None:
    fork = fork_of(Loop())
    fork._measured = [([1.0, 1.0], [math.nan, 0.5])]
    assert fork.gain().lower(0.05) == -math.inf
    fork._measured = [([1.0, math.inf], [0.9, 0.5])]
    assert fork.gain().lower(0.05) == math.inf
    fork.discard()


def test_measuring_leaves_both_as_they_were() -> None:
    loop = Loop(**RESTLESS)
    fork = fork_of(loop)
    follow(loop, fork, 5)
    before = weights(loop.model), torch.default_generator.get_state()
    fork.measure(loop.confirm)
    assert fork.measured
    assert same(weights(loop.model), before[0])
    assert torch.equal(torch.default_generator.get_state(), before[1])
    assert fork.gain().relative == 0.0
    fork.discard()


def test_a_culled_graft_costs_the_fork_no_step() -> None:
    growth, loop = grow(FAST, OneSeed("layer1..head", "widen", Stage.EVALUATING), 100)
    assert "evaluating" in stages(growth.records())
    assert same(weights(loop.model), plain(100)[:4])
