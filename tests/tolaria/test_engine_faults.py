"""What goes wrong under way ends a trial, or growth, and never training."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from esper.log.memory import MemoryStore
from esper.projections.lattice import fold_all
from esper.tolaria.trials import Trial
from esper_events.events import (
    BreakerChanged,
    RunEnded,
    TransitionLapsed,
)
from esper_events.stages import Stage
from support.engine_runs import (
    DOWN,
    UP,
    culls,
    hooks,
    in_stage,
    run_until,
    stage_of,
    trial,
    widen,
)
from support.growth_runs import (
    FAST,
    Loop,
    bits,
    events,
    plain,
    same,
    stages,
    with_,
)


@pytest.mark.parametrize("bad", [1e9, math.nan, math.inf])
def test_an_exploding_loss_brings_the_fork_back(bad: float) -> None:
    loop = Loop()
    growth = loop.grow(with_(lead=4), widen())
    run_until(loop, growth, lambda: bool(growth.engine and growth.engine.transitions.fork))
    loop.run(3)
    loop.run(1, lambda _, loss: torch.tensor(bad))
    loop.run(90 - loop.steps)
    growth.close()
    ((reason, removal), *_) = culls(growth)
    assert reason == f"training loss exploded to {bad:g}"
    assert removal == "fork"
    assert "stabilizing" not in stages(growth.records())
    assert same(bits(loop), plain(90))


def test_an_explosion_overrules_a_fossilization_under_way() -> None:
    loop = Loop()
    growth = loop.grow(with_(lead=10), widen())
    engine = growth.engine
    assert engine is not None
    run_until(loop, growth, lambda: engine.decisions.heading(0, Stage.FOSSILIZED))
    loop.run(1, lambda _, loss: math.nan)
    loop.run(20)
    growth.close()
    assert "fossilized" not in stages(growth.records())
    assert "training loss exploded to nan" in [e.reason for e in events(growth, TransitionLapsed)]
    assert same(bits(loop), plain(loop.steps))


def test_a_loss_below_zero_is_no_explosion() -> None:
    loop = Loop()
    growth = loop.grow(FAST, widen())
    loop.run(120, lambda _, loss: loss - 100.0)
    growth.close()
    assert stages(growth.records()) == UP


def break_weights(seed_trial: Trial) -> None:
    with torch.no_grad():
        for parameter in seed_trial.seed.parameters:
            parameter.fill_(math.nan)


def break_forward(seed_trial: Trial) -> None:
    def fail(*_: Tensor) -> Tensor:
        raise RuntimeError("shapes do not fit")

    seed_trial.seed.body.forward = fail


def break_evaluation(seed_trial: Trial) -> None:
    def fail(body: torch.nn.Module, _: object) -> None:
        if not torch.is_grad_enabled():
            raise IndexError("a batch of another size")

    seed_trial.seed.body.register_forward_pre_hook(fail)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_weights, "its shadow loss is nan"),
        (break_forward, "its shadow pass failed: shapes do not fit"),
        (break_evaluation, "its measurement failed: a batch of another size"),
    ],
)
def test_a_seed_that_breaks_in_the_shadow_is_culled_and_training_goes_on(
    damage: Callable[[Trial], None], said: str
) -> None:
    loop = Loop()
    growth = loop.grow(FAST, widen())
    run_until(loop, growth, lambda: in_stage(growth, Stage.TRAINING))
    damage(trial(growth))
    loop.run(60 - loop.steps)
    growth.close()
    assert culls(growth) == [(said, "removed")]
    assert same(bits(loop), plain(60))


@pytest.mark.parametrize("lead", [1, 2, 12])
def test_a_seed_that_breaks_on_its_way_into_the_host_never_arrives(lead: int) -> None:
    loop = Loop()
    growth = loop.grow(with_(lead=lead), widen())
    engine = growth.engine
    assert engine is not None
    run_until(loop, growth, lambda: engine.decisions.heading(0, Stage.GRAFTING))
    break_weights(trial(growth))
    loop.run(80 - loop.steps)
    growth.close()
    assert "grafting" not in stages(growth.records())
    assert culls(growth) == [("its shadow loss is nan", "removed")]
    assert "its shadow loss is nan" in [e.reason for e in events(growth, TransitionLapsed)]
    assert same(bits(loop), plain(80))


def test_a_seed_that_fails_its_isolation_check_is_refused_for_good() -> None:
    loop = Loop()
    growth = loop.grow(FAST, widen())
    run_until(loop, growth, lambda: bool(growth.engine and growth.engine.trials))
    break_forward(trial(growth))
    loop.run(40)
    growth.close()
    ((reason, removal),) = culls(growth)
    assert "shapes do not fit" in reason
    assert removal == "removed"
    assert stages(growth.records()) == ["germinated", *DOWN]


class Failing(MemoryStore):
    """A disk that is full after ``good`` segments."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.good = good

    def append(self, position: int, segment: bytes) -> None:
        if position >= self.good:
            raise OSError(28, "No space left on device")
        super().append(position, segment)


@pytest.mark.parametrize("sync", [True, False])
def test_a_failed_journal_stops_growth_and_not_training(
    sync: bool, caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop()
    growth = loop.grow(with_(sync_decisions=sync), widen(again=True), Failing(0))
    loop.run(80)
    summary = growth.close()
    engine = growth.engine
    assert engine is not None
    assert (summary.events, summary.segments, growth.records()) == (0, 0, [])
    assert isinstance(growth.log.failure, OSError)
    assert "failed, so its record ends after 0 events: [Errno 28] No space left" in caplog.text
    assert engine.decisions.lapsed >= 3
    assert engine.lattice.seeds == {}
    assert same(bits(loop), plain(80))
    warned = [r.getMessage() for r in caplog.records if "nothing grows any more" in r.getMessage()]
    assert len(warned) == 1, "at once, and once"


def test_a_journal_that_fails_during_a_graft_leaves_model_and_log_in_step() -> None:
    store = Failing(10**9)
    loop = Loop()
    growth = loop.grow(FAST, widen(), store)
    run_until(loop, growth, lambda: in_stage(growth, Stage.GRAFTING))
    assert growth.log.flush(10)
    store.good = 0
    loop.run(100 - loop.steps)
    growth.close()
    # No change without the log: the seed stays where the record leaves it, its fork is let go.
    assert stages(growth.records())[-1] in ("grafting", "stabilizing")
    assert fold_all(growth.records()).seeds[0].stage is stage_of(growth)
    assert events(growth, RunEnded) == []
    assert hooks(loop) == 0


class Hanging(MemoryStore):
    """A disk that answers while ``open`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()

    def append(self, position: int, segment: bytes) -> None:
        self.open.wait(30)
        super().append(position, segment)


def test_a_disk_that_hangs_opens_the_breaker_until_it_answers() -> None:
    store = Hanging()
    settings = with_(sync_decisions=False, ack_timeout=0.02, breaker_cooldown=20, breaker_limit=2)
    loop = Loop()
    growth = loop.grow(settings, widen(again=True), store)
    assert growth.log.flush(10)
    store.open.clear()
    loop.run(10)
    engine = growth.engine
    assert engine is not None
    for _ in range(40):
        loop.run(5)
        threading.Event().wait(0.01)
        if engine.decisions.lapsed >= 2:
            break
    lapsed = engine.decisions.lapsed
    assert growth.breakers == {"log": "open"}, "seen while the log takes no event that says so"
    loop.run(15)
    assert (engine.decisions.lapsed, engine.lattice.seeds) == (lapsed, {})  # Nothing was tried.
    store.open.set()
    assert growth.log.flush(10)
    for _ in range(60):
        loop.run(5)
        assert growth.log.flush(10)
        if engine.lattice.seeds:
            break
    growth.close()
    assert growth.breakers == {"log": "closed"}
    states = [e.state for e in events(growth, BreakerChanged)]
    assert states[:1] == ["open"]
    assert states[-2:] == ["half-open", "closed"]
    assert "germinated" in stages(growth.records(), max(engine.lattice.seeds))
