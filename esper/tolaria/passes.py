"""Passes of the host for the seeds on trial: as many seeds in one as can be."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from esper.kasmina.joint_optimizer import JointOptimizer
from esper.kasmina.objectives import local_step
from esper.kasmina.shadow import SEED_FAULTS, held_out_losses, shadow_step
from esper.kasmina.shared import CannotShareError, prepare, shared_losses, shared_step
from esper.tolaria.context import Context
from esper.tolaria.trials import Trial, derived_seed
from esper_events.events import PassesSeparated

_logger = logging.getLogger("esper.tolaria")

Purpose = Literal["training", "measuring"]
T = TypeVar("T")


class ShadowPasses:
    """Lets seeds on trial learn, and measures them.

    Those with a local objective learn from one plain pass. Of the others up to ``share`` share a
    pass in which each is switched on. Where the host or its objective cannot be run for several
    at once, and can for each alone, they are run one by one from there on, which is put on record.
    Whether that is so depends on code, settings and data alone, and training does not depend on
    what measuring found, so that a re-run, which measures nothing, finds the same.
    """

    def __init__(self, context: Context) -> None:
        self.separate: set[Purpose] = set()
        """What seeds have passes of their own for."""
        self._context = context
        self._model = context.lattice.model
        self._optimizers: dict[tuple[int, ...], JointOptimizer] = {}
        if context.settings.share > 1:
            prepare()

    def train(self, trials: Sequence[Trial], batch: Any, step: int) -> None:
        """One step of each trial's objective; an exception or a loss that is not finite stops a
        trial."""
        loss_fn = self._context.loss_fn
        draw = derived_seed(self._context.run_seed, "shadow", step)
        groups = self._groups([trial for trial in trials if trial.seed.objective == "shadow"])
        local = [trial for trial in trials if trial.seed.objective != "shadow"]
        self._optimizers = {
            _key(g): self._optimizers.get(_key(g)) or _joint(g) for g in (*groups, local)
        }

        def together(group: Sequence[Trial]) -> list[float | Exception]:
            seeds, optimizer = [trial.seed for trial in group], self._optimizers[_key(group)]
            return shared_step(self._model, seeds, loss_fn, batch, draw, optimizer)

        def alone(trial: Trial) -> float:
            return shadow_step(self._model, trial.seed, loss_fn, batch, draw)

        for group in groups:
            _judge(group, self._run(group, "training", step, together, alone))
        if local:
            _judge(local, self._learn_locally(local, batch, draw))

    def _learn_locally(
        self, trials: Sequence[Trial], batch: Any, draw: int
    ) -> list[float | Exception]:
        seeds, optimizer = [trial.seed for trial in trials], self._optimizers[_key(trials)]
        try:
            return local_step(self._model, seeds, self._context.loss_fn, batch, draw, optimizer)
        except SEED_FAULTS as error:
            return [error] * len(trials)

    def measure(
        self, trials: Sequence[Trial], batches: Sequence[Any], step: int
    ) -> list[list[float] | None]:
        """The held-out losses of each trial's seed; None for one that fails, which breaks it."""
        loss_fn = self._context.loss_fn

        def together(group: Sequence[Trial]) -> list[list[float] | Exception]:
            return shared_losses(self._model, [t.seed for t in group], loss_fn, batches)

        def alone(trial: Trial) -> list[float]:
            return held_out_losses(self._model, loss_fn, batches, trial.seed)

        measured: list[list[float] | None] = []
        for group in self._groups(trials):
            found = self._run(group, "measuring", step, together, alone)
            for trial, losses in zip(group, found, strict=True):
                if isinstance(losses, Exception):
                    trial.broken = f"its measurement failed: {losses}"
                measured.append(None if isinstance(losses, Exception) else losses)
        return measured

    def _groups(self, trials: Sequence[Trial]) -> list[Sequence[Trial]]:
        """Those that share a pass."""
        size = self._context.settings.share
        return [trials[first : first + size] for first in range(0, len(trials), size)]

    def _run(
        self,
        group: Sequence[Trial],
        purpose: Purpose,
        step: int,
        together: Callable[[Sequence[Trial]], list[T | Exception]],
        alone: Callable[[Trial], T],
    ) -> list[T | Exception]:
        """What each of the group finds, or what went wrong with it."""
        reason = ""
        if len(group) > 1 and purpose not in self.separate:
            try:
                return together(group)
            except CannotShareError as error:
                reason = str(error)
            except SEED_FAULTS as error:
                return [error] * len(group)
        found = [_tried(alone, trial) for trial in group]
        if reason and not any(isinstance(result, Exception) for result in found):
            self._separate(purpose, step, reason)
        return found

    def _separate(self, purpose: Purpose, step: int, reason: str) -> None:
        _logger.info("step %d: one pass for each seed on trial (%s): %s", step, purpose, reason)
        self.separate.add(purpose)
        self._context.log.append(
            PassesSeparated(time=time.time(), step=step, purpose=purpose, reason=reason)
        )


def _judge(trials: Sequence[Trial], losses: Sequence[float | Exception]) -> None:
    for trial, loss in zip(trials, losses, strict=True):
        if isinstance(loss, Exception):
            trial.stop(f"its shadow pass failed: {loss}")
        elif not math.isfinite(loss):
            trial.stop(f"its shadow loss is {loss}")


def _key(group: Sequence[Trial]) -> tuple[int, ...]:
    return tuple(trial.seed.id for trial in group)


def _joint(group: Sequence[Trial]) -> JointOptimizer:
    return JointOptimizer([trial.seed for trial in group])


def _tried(alone: Callable[[Trial], T], trial: Trial) -> T | Exception:
    try:
        return alone(trial)
    except SEED_FAULTS as error:
        return error
