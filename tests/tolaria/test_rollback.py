"""What a seed in the forward path can do to its host, and how the host gets over it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina.digest import model_digest
from esper.projections.lattice import fold_all
from esper.tolaria.growth import Growth
from esper.tolaria.logged import from_records
from esper_events.events import TransitionApplied, TransitionDecided
from esper_events.stages import BLENDED, Stage
from support.engine_runs import culls, in_stage, run_until, trial, widen
from support.growth_runs import FAST, Asleep, Loop, bits, events, plain, same, stages, with_

RECORDED = with_(FAST, record_every=10)
HOST: dict[str, Any] = {"dropout": 0.2, "batchnorm": True}
LAST = 80


def failing(body: nn.Module, error: Exception, *, learning: bool) -> None:
    """Let ``body`` raise in passes with a gradient, or in those without one."""

    def fail(*_: object) -> None:
        if torch.is_grad_enabled() is learning:
            raise error

    body.register_forward_pre_hook(fail)


def fill(tensors: Sequence[Tensor], value: float) -> None:
    with torch.no_grad():
        for tensor in tensors:
            tensor.fill_(value)


def grafted(settings: Any = RECORDED, steps: int = 3) -> tuple[Loop, Growth]:
    """A host some steps after the start of a graft."""
    loop = Loop(**HOST)
    growth = loop.grow(settings, widen())
    run_until(loop, growth, lambda: in_stage(growth, Stage.GRAFTING))
    loop.run(steps)
    return loop, growth


def last_cull(growth: Growth) -> TransitionApplied:
    assert growth.log.flush(10)
    (decided,) = [d for d in events(growth, TransitionDecided) if d.target is Stage.CULLED]
    settled = events(growth, TransitionApplied)
    (applied,) = [a for a in settled if a.decision == decided.decision]
    assert isinstance(applied, TransitionApplied)
    return applied


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), KeyError("no"), torch.OutOfMemoryError("no")]
)
@pytest.mark.parametrize("sync", [True, False])
def test_a_seed_that_raises_in_the_hosts_pass_is_culled_and_the_loop_lives(
    error: Exception, sync: bool
) -> None:
    loop, growth = grafted(with_(RECORDED, sync_decisions=sync))
    failing(trial(growth).seed.body, error, learning=True)
    at = loop.steps + 1
    run_until(loop, growth, lambda: not in_stage(growth, Stage.GRAFTING))
    assert not sync or loop.steps == at, "at the very next safe point"
    loop.run(LAST - loop.steps)
    growth.close()
    ((reason, removal),) = culls(growth)
    assert reason.startswith(f"it failed in the host: {type(error).__name__}: ")
    assert removal == "fork"
    assert last_cull(growth).steps_lost == 0
    assert same(bits(loop), plain(LAST, **HOST))


def test_a_seed_that_raises_in_evaluation_is_culled_too() -> None:
    loop, growth = grafted()
    failing(trial(growth).seed.body, IndexError("a batch of another size"), learning=False)
    loop.model.eval()
    with torch.no_grad():
        loop.loss_fn(loop.probe[0])  # The user's own evaluation, between two steps.
    loop.run(LAST - loop.steps)
    growth.close()
    reason = "it failed in the host: IndexError: a batch of another size"
    assert culls(growth) == [(reason, "fork")]
    assert same(bits(loop), plain(LAST, **HOST))


def test_what_a_blended_seed_raises_while_it_is_measured_is_known_afterwards() -> None:
    loop, growth = grafted()
    failing(trial(growth).seed.body, ValueError("no"), learning=False)
    run_until(loop, growth, lambda: not in_stage(growth, Stage.GRAFTING))
    growth.close()
    assert culls(growth) == [("it failed in the host: ValueError: no", "fork")]


def fork_of(growth: Growth) -> Any:
    assert growth.engine is not None
    assert growth.engine.transitions.fork is not None
    return growth.engine.transitions.fork


def spoil_weights(growth: Growth) -> None:
    fill(list(fork_of(growth)._branch._weights.values()), math.nan)


def spoil_moments(growth: Growth) -> None:
    for entries in fork_of(growth)._branch._moments.values():
        fill([entries["exp_avg_sq"]], math.inf)


def blow_up(growth: Growth) -> None:
    for weights in fork_of(growth)._branch._weights.values():
        weights.mul_(1e6)


@pytest.mark.parametrize("spoil", [spoil_weights, spoil_moments, blow_up])
def test_a_spoilt_fork_gives_way_to_the_snapshot(spoil: Callable[[Growth], None]) -> None:
    loop = Loop(**HOST)
    growth = loop.grow(RECORDED, widen())
    run_until(loop, growth, lambda: in_stage(growth, Stage.GRAFTING))
    begun = loop.steps
    before = [t.clone() for t in plain(begun, **HOST)[:-1]]
    loop.run(4)
    spoil(growth)
    loop.run(1, lambda *_: math.nan)
    assert same(bits(loop)[:-1], before), "weights, buffers and moments of the graft's start"
    assert culls(growth) == [("training loss exploded to nan", "snapshot")]
    assert last_cull(growth).steps_lost == loop.steps - begun == 5
    loop.run(LAST - loop.steps)
    growth.close()
    assert fold_all(growth.records()).digest() == growth.state(len(growth.records())).digest()
    again = Loop(**HOST)
    second = again.grow(RECORDED, Asleep(), rerun=from_records(growth.records()))
    again.run(LAST)
    assert second.rerun_report().identical, second.rerun_report().difference
    assert model_digest(again.model) == model_digest(loop.model)


def test_a_fork_that_is_spoilt_while_its_cull_waits_for_the_log_is_not_taken() -> None:
    loop, growth = grafted(with_(RECORDED, lead=5))
    engine = growth.engine
    assert engine is not None
    engine.transitions.cull(trial(growth), loop.steps, "as told", delay=3)
    loop.run(1)
    spoil_weights(growth)
    loop.run(3)
    assert in_stage(growth, Stage.GRAFTING), "neither culled nor given a broken host"
    loop.run(1, lambda *_: math.nan)
    loop.run(LAST - loop.steps)
    growth.close()
    assert [removal for _, removal in culls(growth)] == ["fork", "snapshot"]
    assert not any(t.isnan().any() for t in bits(loop) if t.is_floating_point())


class Wild:
    """A host's seeds that raise, give no numbers or harm the fork, each by its own chance."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def chance(self, of: float) -> bool:
        return bool(torch.rand(1, generator=self.generator) < of)

    def strike(self, growth: Growth) -> None:
        if growth.engine is None:
            return
        for struck in growth.engine.watch.in_stages(BLENDED | {Stage.TRAINING}):
            if self.chance(0.02):
                failing(struck.seed.body, RuntimeError("wild"), learning=self.chance(0.5))
            if self.chance(0.02):
                fill(struck.seed.parameters, math.nan)
        if growth.engine.transitions.fork is not None and self.chance(0.03):
            spoil_weights(growth)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_seeds_do_the_host_lives_and_the_log_tells_it(seed: int) -> None:
    """No NaN of a seed or a fork outlives it, and every change is on record."""
    loop, wild = Loop(**HOST), Wild(seed)
    settings = with_(RECORDED, embargo=3, sync_decisions=bool(seed % 2))
    growth = loop.grow(settings, widen(again=True))
    for _ in range(250):
        loop.run(1, lambda _, loss: math.nan if wild.chance(0.01) else loss)
        wild.strike(growth)
    growth.close()
    assert not any(t.isnan().any() for t in bits(loop) if t.is_floating_point())
    assert {"culled"} <= set(stages(growth.records()))
    assert fold_all(growth.records()).digest() == growth.state(len(growth.records())).digest()
