"""The gates of a seed's life: each measures, and says why it opens or stays shut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from esper.blueprints.ir import Blueprint, from_bytes
from esper.kasmina.seed import Seed
from esper.tolaria.statistics import PairedGain
from esper_events.events import Figures


@dataclass(frozen=True)
class GateResult:
    """The outcome of a gate; ``final`` tells that a refusal will not change by waiting."""

    passed: bool
    reason: str
    figures: Figures = field(default_factory=dict)
    final: bool = False


def germination(
    seed: Seed,
    blueprint: Blueprint,
    budget_left: int,
    *,
    occupied: bool = False,
    obstacle: str = "",
) -> GateResult:
    """The slot is free, the blueprint the one its digest names, its parameters are finite, the
    budget holds, and there is no ``obstacle`` to the seed's objective in its slot."""
    count = sum(parameter.numel() for parameter in seed.parameters)
    figures = {"parameters": float(count), "budget_left": float(budget_left)}
    if occupied:
        return GateResult(False, "the slot holds a graft or is cooling down", figures, True)
    if from_bytes(blueprint.canonical()).id != seed.blueprint:
        return GateResult(False, "the blueprint's bytes do not have its digest", figures, True)
    if not all(bool(torch.isfinite(parameter).all()) for parameter in seed.parameters):
        return GateResult(False, "a parameter is not finite", figures, True)
    if count > budget_left:
        reason = f"{count} parameters exceed the {budget_left} left in the budget"
        return GateResult(False, reason, figures, True)
    if obstacle:
        return GateResult(False, obstacle, figures, True)
    return GateResult(True, "blueprint, parameters and budget hold", figures)


def isolation(problems: Sequence[str]) -> GateResult:
    """The contract and isolation checks of a probe batch found nothing."""
    if problems:
        return GateResult(False, "; ".join(problems), {"problems": float(len(problems))}, True)
    return GateResult(True, "contract kept, no host parameter reachable", {"problems": 0.0})


def shadow(gain: PairedGain, confidence: float) -> GateResult:
    """The seed switched on in the shadow is better on held-out batches, with confidence."""
    lower = gain.lower(1.0 - confidence)
    figures = {"gain": gain.relative, "lower": lower, "batches": float(gain.batches)}
    if lower > 0.0:
        return GateResult(True, f"predicts {gain.relative:.1%} less held-out loss", figures)
    return GateResult(False, f"gain {gain.relative:.1%} is not clear of zero", figures)


def blend(alpha: float) -> GateResult:
    """Alpha is exactly 1."""
    return GateResult(alpha == 1.0, f"alpha is {alpha:g}", {"alpha": alpha})


def stability(loss: float, before: float, band: float, overdue: bool) -> GateResult:
    """Held-out loss is inside its band again: ``band - 1`` of what it was above that, or less."""
    figures = {"loss": loss, "before": before, "band": band}
    if loss <= before + abs(before) * (band - 1.0):
        return GateResult(True, "held-out loss is inside its band", figures)
    return GateResult(False, "held-out loss is outside its band", figures, overdue)


def fork(
    gain: PairedGain, min_effect: float, level: float, test: int, fork_steps: int
) -> GateResult:
    """The grown branch beats the fork by the wanted effect, its interval clear of zero.

    ``level`` is the share of the error budget that this ``test`` may spend.
    """
    lower = gain.lower(level)
    figures = {
        "gain": gain.relative,
        "lower": lower,
        "level": level,
        "test": float(test),
        "min_effect": min_effect,
        "batches": float(gain.batches),
        "fork_steps": float(fork_steps),
    }
    if gain.relative == math.inf:
        return GateResult(True, "the fork has diverged, the grown host has not", figures)
    if not lower > 0.0:
        return GateResult(False, "not clearly better than the fork", figures, True)
    if gain.relative < min_effect:
        return GateResult(False, f"only {gain.relative:.1%} better than the fork", figures, True)
    return GateResult(True, f"{gain.relative:.1%} less held-out loss than the fork", figures)
