"""The learning rate of ``esper train`` over the steps of a run."""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from esper.tolaria.sections import ScheduleSettings


def make_scheduler(
    optimizer: torch.optim.Optimizer, settings: ScheduleSettings, steps: int
) -> LambdaLR:
    """The configured schedule of a run of ``steps`` steps, to be stepped after each of them."""
    return LambdaLR(optimizer, lambda done: share_of_rate(settings, steps, done))


def share_of_rate(settings: ScheduleSettings, steps: int, done: int) -> float:
    """The factor of the configured rate for the step after ``done`` steps.

    Up to ``warmup`` steps it rises in a line to 1. Then it stays there, falls along half a cosine
    to ``final`` at the end of the run, or is multiplied by ``factor`` after every ``every`` steps.
    """
    if done < settings.warmup:
        return (done + 1) / (settings.warmup + 1)
    since = done - settings.warmup
    match settings.kind:
        case "cosine":
            part = min(1.0, since / max(1, steps - settings.warmup))
            cosine = 0.5 * (1.0 + math.cos(math.pi * part))
            return settings.final + (1.0 - settings.final) * cosine
        case "step":
            return float(settings.factor ** (since // settings.every))
        case "constant":
            return 1.0
