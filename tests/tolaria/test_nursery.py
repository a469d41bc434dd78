"""Seeds begin in pieces: however many are proposed at once, no safe point does more than one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina import check
from esper.kasmina.isolation import HostGuard
from esper.tamiyo.interface import Advance, Cull, Germinate, Observation, Proposal
from esper.tolaria import gatekeeper
from esper.tolaria.growth import Growth
from esper_events.events import GateMeasured, TransitionApplied, TransitionDecided
from esper_events.stages import Gate, Stage
from support.growth_runs import FAST, Loop, bits, events, plain, same, stages, with_

SPAN = "layer1..head"
QUIET = with_(FAST, observe_every=100, measure_every=100, shadow_every=1_000_000, lead=10)
"""Nothing but the beginning of seeds uses the host between two observations."""


@dataclass
class Many:
    """Germinates ``count`` seeds at its first chance and takes each into TRAINING.

    Seed ``cull`` is ended once it has germinated and is being checked.
    """

    count: int
    cull: int | None = None
    asked_while_waiting: int = 0
    begun: bool = False
    ended: list[int] = field(default_factory=list)

    def decide(self, observation: Observation) -> list[Proposal]:
        """Proposals as told above."""
        if not self.begun:
            self.begun = True
            return [Germinate(SPAN, "widen", "as told")] * self.count
        self.asked_while_waiting += len(observation.seeds) < self.count
        proposals: list[Proposal] = []
        for seed in observation.seeds:
            if seed.stage is Stage.GERMINATED and not seed.pending:
                if seed.ready:
                    proposals.append(Advance(seed.id, "as told"))
                elif seed.id == self.cull and seed.id not in self.ended:
                    self.ended.append(seed.id)
                    proposals.append(Cull(seed.id, "no more"))
        return proposals


def begun(count: int, steps: int = 190, **more: Any) -> tuple[Growth, Loop, Many, list[int]]:
    """A run whose seeds begin at step 100, and how often each later safe point ran the host."""
    loop, controller = Loop(dropout=0.3, batchnorm=True), Many(count, **more)
    growth = loop.grow(QUIET, controller)
    loop.run(100)
    passes = []
    for _ in range(steps - 100):
        before = loop.evaluations
        loop.run(1)
        passes.append(loop.evaluations - before - 1)
    return growth, loop, controller, passes


def entries(growth: Growth, stage: Stage) -> list[int]:
    """The steps at which seeds entered ``stage``."""
    target = {e.decision: e.target for e in events(growth, TransitionDecided)}
    return [e.step for e in events(growth, TransitionApplied) if target[e.decision] is stage]


@pytest.mark.parametrize("count", [1, 8])
def test_no_safe_point_runs_the_host_more_than_once_for_seeds_that_begin(count: int) -> None:
    growth, _, _, passes = begun(count)
    assert max(passes) == 1
    assert sum(passes) == 3 * count
    assert [row.stage for row in growth.seed_rows()] == [Stage.TRAINING] * count
    growth.close()


def test_seeds_that_are_proposed_together_begin_their_trials_at_neighbouring_steps() -> None:
    growth, _, controller, _ = begun(8)
    germinated, training = (entries(growth, s) for s in (Stage.GERMINATED, Stage.TRAINING))
    assert germinated == list(range(germinated[0], germinated[0] + 8))
    assert training == list(range(training[0], training[0] + 8))
    assert controller.asked_while_waiting == 0
    growth.close()


def test_seeds_that_only_began_leave_the_host_and_its_randomness_alone() -> None:
    growth, loop, _, _ = begun(3)
    growth.close()
    assert same(bits(loop), plain(190, dropout=0.3, batchnorm=True))


def test_a_seed_that_is_culled_while_it_is_checked_asks_no_gate() -> None:
    growth, _, controller, _ = begun(2, cull=0)
    asked = [e.seed for e in events(growth, GateMeasured) if e.gate is Gate.ISOLATION]
    assert (controller.ended, asked) == ([0], [1])
    assert "training" not in stages(growth.records(), 0)
    assert stages(growth.records(), 1)[-1] == "training"
    growth.close()


def test_a_run_that_ends_while_seeds_begin_leaves_nothing_open() -> None:
    for steps in range(101, 135, 2):
        growth, loop, _, _ = begun(3, steps)
        growth.close()
        assert all(row.stage is Stage.FOSSILIZED for row in growth.seed_rows())
        assert same(bits(loop), plain(steps, dropout=0.3, batchnorm=True))


class Leaks(nn.Module):
    """Computes with a weight of the host."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.borrowed = [weight]

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] * self.borrowed[0].sum()


def refused(growth: Growth) -> str:
    (found,) = [e for e in events(growth, GateMeasured) if e.gate is Gate.ISOLATION]
    assert not found.passed
    return str(found.reason)


def test_what_any_part_of_the_check_finds_ends_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    part, real = 0, check.contract_check

    def finding(*arguments: Any) -> Any:
        for number, problems in enumerate(real(*arguments)):
            yield [*problems, f"part {number}"] if number == part else problems

    monkeypatch.setattr(gatekeeper, "contract_check", finding)
    for part in range(4):
        growth, loop, _, _ = begun(1)
        growth.close()
        assert refused(growth) == f"part {part}"
        assert same(bits(loop), plain(190, dropout=0.3, batchnorm=True))


def test_a_host_that_is_not_frozen_is_found_at_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "HostGuard", lambda model, **_: HostGuard(model, freeze=False))
    growth, *_ = begun(1)
    growth.close()
    assert "host parameter head.weight is reachable from the seed's loss" in refused(growth)


def test_a_seed_that_computes_with_a_weight_of_the_host_is_found_at_the_gate() -> None:
    loop = Loop()
    growth = loop.grow(QUIET, Many(1))
    loop.run(103)
    assert growth.engine is not None
    (trial,) = growth.engine.trials.values()
    trial.seed.body = Leaks(loop.model.get_submodule("layer1").weight)
    loop.run(40)
    growth.close()
    assert refused(growth) == "host parameter layer1.weight is reachable from what the seed adds"


def test_a_check_that_fails_is_a_refusal_and_no_crash() -> None:
    loop = Loop()
    growth = loop.grow(QUIET, Many(1))
    loop.run(103)
    assert growth.engine is not None
    (trial,) = growth.engine.trials.values()
    trial.seed.body = nn.Linear(7, 3)
    loop.run(40)
    growth.close()
    assert refused(growth).startswith("the seed cannot run on its slot's activation")
    assert torch.isfinite(loop.model.get_submodule("head").weight).all()
