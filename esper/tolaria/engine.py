"""The safe point: everything that happens to the host between two optimizer steps.

Order matters. The fork is trained on the batch that the host has just seen, then the seeds on
trial; then decisions that are due take effect; last the controller is asked. A graft that takes
effect here is thus in the host from the next batch on, at an alpha of exactly 0.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from esper.blueprints.ir import Blueprint
from esper.kasmina.branch import Update
from esper.kasmina.check import contract_violations
from esper.kasmina.lattice import Lattice
from esper.kasmina.shadow import LossFunction, held_out_losses
from esper.projections.lattice import LatticeState, SeedState
from esper.tamiyo.interface import (
    Advance,
    Controller,
    Cull,
    Germinate,
    Observation,
    Proposal,
    SeedView,
)
from esper.tolaria import gates
from esper.tolaria.decisions import Decisions, Log
from esper.tolaria.gates import GateResult
from esper.tolaria.heldout import HeldOut
from esper.tolaria.observer import SeedRow
from esper.tolaria.settings import GrowthSettings
from esper.tolaria.statistics import paired_gain, spent
from esper.tolaria.transitions import NEXT, Transitions
from esper.tolaria.trials import (
    Trial,
    candidates,
    live_stage,
    measure_trial,
    new_seed,
    train_in_shadow,
)
from esper_events.events import Event, GateMeasured, PlateauDetected
from esper_events.stages import BLENDED, GATES, LIVE, Stage

_HISTORY = 256
_MEMORY = 0.98


class Engine:
    """Runs the lifecycle of seeds in one host, one safe point after another."""

    def __init__(
        self,
        lattice: Lattice,
        loss_fn: LossFunction,
        update: Update,
        held_out: HeldOut,
        settings: GrowthSettings,
        controller: Controller,
        library: Sequence[Blueprint],
        log: Log,
        run_seed: int,
    ) -> None:
        self.lattice = lattice
        self.decisions = Decisions(log, settings)
        self.transitions = Transitions(lattice, loss_fn, update, settings, self.decisions)
        self.trials = self.transitions.trials
        self.held_out: list[tuple[int, float]] = []
        self._loss_fn = loss_fn
        self._parts = held_out
        self._settings = settings
        self._controller = controller
        self._library: Mapping[str, Blueprint] = {b.name: b for b in library}
        self._log = log
        self._run_seed = run_seed
        self._seeds_made = 0
        self._fork_tests = 0
        self._typical_loss: float | None = None
        self._loss_before_graft = math.inf

    @property
    def idle(self) -> bool:
        """Whether the next safe point has nothing to do unless it is one for observing."""
        return not (self.trials or self.decisions)

    def safe_point(self, step: int, batch: Any, loss: Tensor | float | None) -> None:
        """Do what is due after optimizer step ``step``, which trained on ``batch``."""
        self._follow_with_fork(step, batch, loss)
        if step % self._settings.shadow_every == 0:
            self._train_trials(batch)
        applied = self.decisions.settle(step)
        observing = step % self._settings.observe_every == 0
        if observing:
            self._observe(step)
        if observing or applied:
            self._consult(step)
        self.transitions.mark()

    def conclude(self, step: int, reason: str) -> None:
        """End every trial: what has not earned its place leaves the host.

        A decision that the log does not acknowledge lapses; the seed then stays where it is.
        """
        self.decisions.settle(step, wait=True)
        self.decisions.abandon(step, reason)
        for trial in self._in_stages(LIVE):
            self.transitions.cull(trial, step, reason, delay=0)
        self.decisions.settle(step, wait=True)
        self.decisions.abandon(step, reason)

    def state(self, records: int) -> LatticeState:
        """The running lattice in the terms of its projection, after ``records`` records."""
        seeds = {
            number: SeedState(
                seed.slot.id,
                seed.blueprint,
                self.lattice.stage(number),
                self.transitions.weights[number],
            )
            for number, seed in self.lattice.seeds.items()
        }
        slots = tuple(self.lattice.map.slots)
        return LatticeState(records=records, slots=slots, seeds=seeds, lapsed=self.decisions.lapsed)

    def rows(self) -> list[SeedRow]:
        """Fossils and live seeds as a person sees them, oldest first."""
        shown = [*self.transitions.fossils, *self.trials.values()]
        return [self._row(trial) for trial in sorted(shown, key=lambda t: t.seed.id)]

    def _row(self, trial: Trial) -> SeedRow:
        stage = live_stage(self.lattice, trial)
        return SeedRow(
            seed=trial.seed.id,
            slot=trial.seed.slot.id,
            blueprint=trial.blueprint.name,
            stage=stage,
            alpha=0.0 if stage is Stage.DORMANT else self.lattice.alpha(trial.seed.id),
            parameters=sum(p.numel() for p in trial.seed.parameters),
            gain=trial.gains[-1] if trial.gains else None,
        )

    def _in_stages(self, stages: frozenset[Stage]) -> list[Trial]:
        return [t for t in self.trials.values() if live_stage(self.lattice, t) in stages]

    def _follow_with_fork(self, step: int, batch: Any, loss: Tensor | float | None) -> None:
        if self.transitions.fork is None:
            self._typical_loss = None
            return
        self.transitions.fork.follow(batch)
        self.lattice.tick()
        if loss is not None and self._exploded(float(loss)):
            for trial in self._in_stages(BLENDED):
                if not self.decisions.pending(trial.seed.id):
                    self.transitions.cull(trial, step, f"training loss exploded to {float(loss):g}")

    def _exploded(self, loss: float) -> bool:
        """Whether ``loss`` is no number, or far above its running mean since the graft began."""
        typical = loss if self._typical_loss is None else self._typical_loss
        if not math.isfinite(loss) or loss > typical * self._settings.explosion:
            return True
        self._typical_loss = _MEMORY * typical + (1.0 - _MEMORY) * loss
        return False

    def _train_trials(self, batch: Any) -> None:
        for trial in self._in_stages(frozenset({Stage.TRAINING})):
            if not trial.broken:
                train_in_shadow(self.lattice, trial, self._loss_fn, batch, self._run_seed)

    def _observe(self, step: int) -> None:
        """Measure the host, every seed on trial, and the graft under test."""
        model = self.lattice.model
        baseline = held_out_losses(model, self._loss_fn, self._parts.watch)
        self.held_out.append((step, math.fsum(baseline) / len(baseline)))
        del self.held_out[:-_HISTORY]
        for trial in self._in_stages(frozenset({Stage.TRAINING})):
            if not trial.broken:
                self._log.append(
                    measure_trial(
                        self.lattice,
                        trial,
                        self._loss_fn,
                        self._parts.watch,
                        baseline,
                        step,
                    )
                )
        fork = self.transitions.fork
        for trial in self._in_stages(frozenset({Stage.EVALUATING})):
            if fork is not None and step - trial.since >= self._settings.evaluate_steps // 2:
                fork.measure(self._parts.confirm)
        self.transitions.retry_cooldowns(step)

    def _consult(self, step: int) -> None:
        for trial in self._in_stages(LIVE):
            if trial.broken and not self.decisions.pending(trial.seed.id):
                self.transitions.cull(trial, step, trial.broken)
        if not self.decisions.allowed(step):
            return
        for proposal in self._controller.decide(self._observation(step)):
            self._carry_out(proposal, step)

    def _observation(self, step: int) -> Observation:
        budget = self._settings.max_added_parameters - self.transitions.fossil_parameters
        views = tuple(self._view(t, step) for t in self._in_stages(LIVE | {Stage.DORMANT}))
        free = () if views else candidates(self.lattice, tuple(self._library.values()), budget)
        return Observation(step, tuple(self.held_out), free, views, len(self.transitions.fossils))

    def _view(self, trial: Trial, step: int) -> SeedView:
        stage, age = live_stage(self.lattice, trial), step - trial.since
        return SeedView(
            id=trial.seed.id,
            slot=trial.seed.slot.id,
            blueprint=trial.blueprint.name,
            stage=stage,
            age=age,
            shadow_steps=trial.seed.shadow_steps,
            gains=tuple(trial.gains),
            ready=self._ready(trial, stage, age),
            pending=stage is Stage.DORMANT or self.decisions.pending(trial.seed.id),
            refusals=trial.refusals,
        )

    def _ready(self, trial: Trial, stage: Stage, age: int) -> bool:
        """Whether the next gate can have anything new to say."""
        match stage:
            case Stage.TRAINING:
                return len(trial.gains) > trial.refused_at
            case Stage.GRAFTING:
                return self.lattice.alpha(trial.seed.id) == 1.0
            case Stage.STABILIZING:
                return age >= self._settings.stabilize_steps
            case Stage.EVALUATING:
                return age >= self._settings.evaluate_steps
            case _:
                return True

    def _carry_out(self, proposal: Proposal, step: int) -> None:
        match proposal:
            case Germinate(slot=slot, blueprint=blueprint, reason=reason):
                self._germinate(slot, blueprint, reason, step)
            case Advance(seed=seed, reason=reason):
                self._advance(self.trials[seed], reason, step)
            case Cull(seed=seed, reason=reason):
                self.transitions.cull(self.trials[seed], step, reason)

    def _germinate(self, slot: str, name: str, reason: str, step: int) -> None:
        if self._seeds_made == 0 or not self.trials:
            latest = self.held_out[-1][1] if self.held_out else math.nan
            figures = {"held_out_loss": latest}
            self._log.append(PlateauDetected(time=time.time(), step=step, figures=figures))
        number, self._seeds_made = self._seeds_made, self._seeds_made + 1
        blueprint = self._library[name]
        seed = new_seed(number, self.lattice.map.slots[slot], blueprint, self._run_seed)
        trial = Trial(seed, blueprint, since=step)
        budget = self._settings.max_added_parameters - self.transitions.fossil_parameters
        result = gates.germination(seed, blueprint, budget)
        self._log.append(self._measured(trial, Stage.DORMANT, Stage.GERMINATED, result, step))
        if result.passed:
            self.transitions.germinate(trial, step, reason)

    def _advance(self, trial: Trial, reason: str, step: int) -> None:
        source = live_stage(self.lattice, trial)
        target = NEXT[source]
        result = self._ask_gate(trial, source, step)
        self._log.append(self._measured(trial, source, target, result, step))
        if result.passed:
            self.transitions.advance(trial, step, f"{reason}: {result.reason}")
            if source is Stage.TRAINING:
                self._loss_before_graft = self.held_out[-1][1]
        elif result.final:
            self.transitions.cull(trial, step, result.reason)
        else:
            trial.refusals += 1
            trial.refused_at = len(trial.gains)

    def _ask_gate(self, trial: Trial, source: Stage, step: int) -> GateResult:
        settings, seed = self._settings, trial.seed
        model, fork = self.lattice.model, self.transitions.fork
        match source:
            case Stage.GERMINATED:
                batch = self._parts.watch[0]
                return gates.isolation(contract_violations(model, seed, self._loss_fn, batch))
            case Stage.TRAINING:
                base = held_out_losses(model, self._loss_fn, self._parts.shadow)
                grown = held_out_losses(model, self._loss_fn, self._parts.shadow, seed)
                return gates.shadow(paired_gain(base, grown), settings.shadow_confidence)
            case Stage.GRAFTING:
                return gates.blend(self.lattice.alpha(seed.id))
            case Stage.STABILIZING:
                overdue = step - trial.since >= 3 * settings.stabilize_steps
                before = self._loss_before_graft
                return gates.stability(
                    self.held_out[-1][1], before, settings.stability_band, overdue
                )
            case _ if fork is not None:
                self._fork_tests += 1
                level = spent(settings.error_budget, self._fork_tests)
                test = self._fork_tests
                return gates.fork(fork.gain(), settings.min_effect, level, test, fork.steps)
        return GateResult(False, f"no gate leads out of {source.value}", final=True)

    def _measured(
        self, trial: Trial, source: Stage, target: Stage, result: GateResult, step: int
    ) -> Event:
        return GateMeasured(
            time=time.time(),
            step=step,
            seed=trial.seed.id,
            gate=GATES[source, target],
            passed=result.passed,
            reason=result.reason,
            figures=result.figures,
        )
