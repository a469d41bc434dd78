from __future__ import annotations

import math

import pytest
import torch

from esper.blueprints.library import LIBRARY
from esper.kasmina.signature import Slot
from esper.tolaria import gates
from esper.tolaria.statistics import PairedGain
from esper.tolaria.trials import new_seed

CLEAR = PairedGain(0.30, 0.02, 20)
VAGUE = PairedGain(0.30, 0.40, 20)
SMALL = PairedGain(0.05, 0.001, 20)
NONE = PairedGain(0.0, 0.0, 20)
BROKEN = PairedGain(-math.inf, math.inf, 20)
DIVERGED = PairedGain(math.inf, 0.0, 20)

SLOT = Slot((8,), 0, (8,), 0, id="fc", source="output", start="fc", end="fc")
LOW_RANK = LIBRARY["low_rank"]


def test_germination_checks_slot_digest_parameters_and_budget() -> None:
    seed = new_seed(0, SLOT, LOW_RANK, 0)
    count = sum(p.numel() for p in seed.parameters)
    assert gates.germination(seed, LOW_RANK, count).passed
    poor = gates.germination(seed, LOW_RANK, count - 1)
    assert (poor.passed, poor.final) == (False, True)
    assert poor.reason == f"{count} parameters exceed the {count - 1} left in the budget"
    assert poor.figures == {"parameters": float(count), "budget_left": float(count - 1)}
    taken = gates.germination(seed, LOW_RANK, count, occupied=True)
    assert (taken.passed, taken.final) == (False, True)
    other = gates.germination(seed, LIBRARY["bottleneck_mlp"], count)
    assert (other.passed, other.final) == (False, True)
    with torch.no_grad():
        seed.parameters[0][0, 0] = math.nan
    assert gates.germination(seed, LOW_RANK, count).reason == "a parameter is not finite"


def test_isolation_passes_without_problems_and_names_those_found() -> None:
    assert gates.isolation([]).passed
    refused = gates.isolation(["one", "two"])
    assert (refused.passed, refused.final, refused.reason) == (False, True, "one; two")
    assert refused.figures == {"problems": 2.0}


@pytest.mark.parametrize(
    ("gain", "confidence", "passed"),
    [
        (CLEAR, 0.95, True),
        (VAGUE, 0.95, False),
        (VAGUE, 0.51, True),
        (NONE, 0.95, False),
        (BROKEN, 0.95, False),
        (CLEAR, 1.0, False),
        (PairedGain(0.3, 0.02, 1), 0.95, False),
    ],
)
def test_the_shadow_gate_wants_a_gain_clear_of_zero(
    gain: PairedGain, confidence: float, passed: bool
) -> None:
    result = gates.shadow(gain, confidence)
    assert result.passed is passed
    assert not result.final
    assert result.figures["batches"] == gain.batches


@pytest.mark.parametrize("alpha", [0.0, 0.5, math.nextafter(1.0, 0.0)])
def test_the_blend_gate_wants_exactly_one(alpha: float) -> None:
    assert not gates.blend(alpha).passed
    assert gates.blend(1.0).passed


@pytest.mark.parametrize(
    ("loss", "overdue", "passed", "final"),
    [
        (1.25, False, True, False),
        (1.26, False, False, False),
        (1.26, True, False, True),
        (math.nan, True, False, True),
        (math.inf, False, False, False),
    ],
)
def test_the_stability_gate_wants_the_loss_in_its_band(
    loss: float, overdue: bool, passed: bool, final: bool
) -> None:
    result = gates.stability(loss, 1.0, 1.25, overdue)
    assert (result.passed, result.final) == (passed, final)


@pytest.mark.parametrize(("loss", "passed"), [(-9.0, True), (-7.5, True), (-7.4, False)])
def test_the_band_of_a_loss_below_zero_lies_above_it_too(loss: float, passed: bool) -> None:
    assert gates.stability(loss, -10.0, 1.25, overdue=False).passed == passed


@pytest.mark.parametrize(
    ("gain", "effect", "level", "passed"),
    [
        (CLEAR, 0.15, 0.03, True),
        (CLEAR, 0.31, 0.03, False),
        (VAGUE, 0.15, 0.03, False),
        (SMALL, 0.15, 0.03, False),
        (SMALL, 0.05, 0.03, True),
        (NONE, 0.0, 0.03, False),
        (BROKEN, 0.0, 0.03, False),
        (DIVERGED, 0.15, 0.03, True),
        (CLEAR, 0.15, 0.0, False),
        (PairedGain(0.3, 0.0, 20), 0.15, 0.0, False),
    ],
)
def test_the_fork_gate_wants_the_effect_and_certainty(
    gain: PairedGain, effect: float, level: float, passed: bool
) -> None:
    result = gates.fork(gain, effect, level, 2, 400)
    assert result.passed is passed
    assert result.final is not passed
    assert result.figures["level"] == level
    assert (result.figures["test"], result.figures["fork_steps"]) == (2.0, 400.0)
