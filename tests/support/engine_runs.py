"""What the tests of the engine ask of a run under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from esper.tolaria.growth import Growth
from esper.tolaria.trials import Trial
from esper_events.events import TransitionDecided
from esper_events.stages import Stage
from support.growth_runs import Loop, OneSeed, events

SPAN, OUTPUT = "layer1..head", "layer1"
UP = ["germinated", "training", "grafting", "stabilizing", "evaluating", "fossilized"]
DOWN = ["culled", "embargoed", "dormant"]
RESTLESS: dict[str, Any] = {"dropout": 0.3, "batchnorm": True}


def widen(cull_in: Stage | None = None, **more: object) -> OneSeed:
    return OneSeed(SPAN, "widen", cull_in, **more)  # type: ignore[arg-type]


def culls(growth: Growth) -> list[tuple[str, str]]:
    """Reason and manner of every cull that was decided."""
    decided = events(growth, TransitionDecided)
    return [(d.reason, d.removal) for d in decided if d.target is Stage.CULLED]


def trial(growth: Growth) -> Trial:
    """The one trial under way."""
    assert growth.engine is not None
    (found,) = growth.engine.trials.values()
    return found


def stage_of(growth: Growth) -> Stage:
    assert growth.engine is not None
    return growth.engine.lattice.stage(trial(growth).seed.id)


def in_stage(growth: Growth, stage: Stage) -> bool:
    return growth.engine is not None and bool(growth.engine.watch.in_stages(frozenset({stage})))


def run_until(loop: Loop, growth: Growth, condition: Callable[[], bool]) -> None:
    for _ in range(300):
        if condition():
            return
        loop.run(1)
    pytest.fail("it never came to that")


def hooks(loop: Loop) -> int:
    return len(loop.optimizer._optimizer_step_post_hooks)
