"""The safe point: everything that happens to the host between two optimizer steps.

Order matters. The fork is trained on the batch that the host has just seen, then the seeds on
trial; then decisions that are due take effect, or a piece of work is done on a seed that is to
begin; last the controller is asked. A graft that takes effect here is thus in the host from the
next batch on, at an alpha of exactly 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from esper.kasmina.digest import tensor_digests
from esper.projections.lattice import LatticeState
from esper.tamiyo.consultation import Questioner, canonical
from esper.tamiyo.interface import (
    Advance,
    Controller,
    Cull,
    Germinate,
    Observation,
    Plateau,
    Proposal,
)
from esper.tolaria.context import Context
from esper.tolaria.decisions import Decisions, Ticket
from esper.tolaria.fork_trial import awaits_backward
from esper.tolaria.gatekeeper import Gatekeeper
from esper.tolaria.nursery import Nursery
from esper.tolaria.observer import SeedRow
from esper.tolaria.passes import ShadowPasses
from esper.tolaria.recovery import Recovery
from esper.tolaria.rollback import Rollbacks
from esper.tolaria.transitions import Transitions
from esper.tolaria.trials import Trial, live_stage
from esper.tolaria.watch import Watch
from esper_events.events import ControllerConsulted, PlateauDetected, WeightsRecorded
from esper_events.stages import LIVE, Stage


class Engine:
    """Runs the lifecycle of seeds in one host, one safe point after another."""

    def __init__(
        self, context: Context, controller: Controller, rollbacks: Rollbacks | None = None
    ) -> None:
        """``rollbacks`` are what a spoilt host is brought back by, where checkpoints are kept."""
        settings, log = context.settings, context.log
        self.lattice = context.lattice
        self.decisions = Decisions(log, settings)
        self.transitions = Transitions(context, self.decisions)
        self.trials = self.transitions.trials
        self._passes = ShadowPasses(context)
        self.watch = Watch(context, self.transitions, self.decisions, self._passes)
        self._gatekeeper = Gatekeeper(context, self.transitions, self.watch)
        parts = self.transitions, self.decisions, self.watch
        self._recovery = Recovery(context, *parts, rollbacks)
        self._nursery = Nursery(context, self.transitions, self.decisions, self._gatekeeper)
        self._context = context
        self._settings = settings
        self._questioner = Questioner(controller)
        self._log = log
        self._asking = False
        self._recorded_at = 0

    @property
    def idle(self) -> bool:
        """Whether the next safe point has nothing to do unless it is one for observing."""
        busy = self.trials or self.decisions or self._nursery or self._asking
        return not (busy or self._recovery.ailing)

    @property
    def quiet(self) -> bool:
        """Whether nothing is on trial or held back, and nothing decided but that seeds cool down:
        what there is to remember is small then. And whether the host is well, for all one knows."""
        settled = self.transitions.quiet and self.decisions.quiet
        return settled and self._recovery.well and not (self._nursery or self._asking)

    def snapshot(self) -> dict[str, Any]:
        """All that it remembers from one safe point to the next while it is quiet."""
        rollbacks = self._recovery.rollbacks
        return {
            "seeds": self.transitions.snapshot(),
            "decisions": self.decisions.snapshot(),
            "gates": self._gatekeeper.snapshot(),
            "held_out": list(self.watch.held_out),
            "seeds_made": self._nursery.made,
            "recorded_at": self._recorded_at,
            "separate": sorted(self._passes.separate),
            "worst": self.watch.worst,
            "rollbacks": [] if rollbacks is None else rollbacks.snapshot(),
        }

    def restore(self, kept: Mapping[str, Any], told: Callable[[int], Ticket]) -> None:
        """Go on from a :meth:`snapshot`; the tensors of fossils are the caller's to fill.

        ``told`` gives the log's promise about a decision that it holds already.
        """
        self.transitions.restore(kept["seeds"])
        self.decisions.restore(kept["decisions"], self.transitions.cooldown, told)
        self._gatekeeper.restore(kept["gates"])
        self.watch.held_out[:] = kept["held_out"]
        self._nursery.made = kept["seeds_made"]
        self._recorded_at = kept["recorded_at"]
        self._passes.separate.update(kept["separate"])
        self.watch.worst = kept["worst"]
        if self._recovery.rollbacks is not None:
            self._recovery.rollbacks.restore(kept["rollbacks"])

    def safe_point(self, step: int, batch: Any, loss: Tensor | float | None) -> None:
        """Do what is due after optimizer step ``step``, which trained on ``batch``."""
        observing = step % self._observation_interval() == 0
        self._follow_with_fork(batch, loss)
        self._recovery.judge_graft(step, loss)
        if step % self._settings.shadow_every == 0:
            self._train_trials(step, self._context.update.one(batch))
        applied = self.decisions.settle(step)
        back = self._recovery.go_back(step)
        if observing or (self._recovery.ailing and (applied or back)):
            self._observe(step)
        if self._recovery.ailing:
            self._nursery.clear()
            self._asking = False
            self._recovery.advance(step)
        elif self._nursery and not applied and self.decisions.allowed(step):
            self._nursery.advance(step)
        self._asking |= (observing or applied) and not self._recovery.ailing
        if self._asking and self._nursery.settled:
            self._asking = False
            self._consult(step)
        self.transitions.mark()

    def _observe(self, step: int) -> None:
        """Measure the host and the seeds, and see whether anything is spoilt."""
        was_well = not self.watch.spoilt
        self.watch.observe(step)
        self._record_weights(step)
        self._recovery.judge_host(step, was_well=was_well)

    def _record_weights(self, step: int) -> None:
        """Put the host's bits on record from time to time, for a re-run to be held to."""
        if step - self._recorded_at >= self._settings.record_every:
            self._recorded_at = step
            tensors = tensor_digests(self.lattice.model)
            self._log.append(WeightsRecorded(time=time.time(), step=step, tensors=tensors))

    def _observation_interval(self) -> int:
        """Steps between two observations: rare while nothing is on trial."""
        rare, often = self._settings.observe_every, self._settings.measure_every
        return rare if self.idle else min(rare, often)

    def conclude(self, step: int, reason: str) -> None:
        """End every trial: what has not earned its place leaves the host.

        A decision that the log does not acknowledge lapses; the seed then stays where it is.
        """
        self._nursery.clear()
        self.decisions.settle(step, wait=True)
        self.decisions.abandon(step, reason)
        for trial in self.watch.in_stages(LIVE):
            self.transitions.cull(trial, step, reason, delay=0)
        self.decisions.settle(step, wait=True)
        self.decisions.abandon(step, reason)
        self._recovery.go_back(step, wait=True)
        self.transitions.release()

    def state(self, records: int) -> LatticeState:
        """The running lattice in the terms of its projection, after ``records`` records."""
        return self.transitions.state(records, self.decisions.lapsed)

    def rows(self) -> list[SeedRow]:
        """Fossils and live seeds as a person sees them, oldest first."""
        return self.watch.rows()

    def _follow_with_fork(self, batch: Any, loss: Tensor | float | None) -> None:
        if self.transitions.fork is None:
            return
        if isinstance(loss, Tensor) and awaits_backward(loss):
            raise RuntimeError(
                "growth.step was called between a loss and its backward pass, and would change "
                "weights that the pass needs: call it after backward() and optimizer.step(), or "
                "give it loss.detach() where the graph is kept on purpose"
            )
        self.transitions.fork.follow(batch)
        self.lattice.tick()

    def _train_trials(self, step: int, batch: Any) -> None:
        trials = [t for t in self.watch.in_stages(frozenset({Stage.TRAINING})) if not t.stopped]
        self._passes.train(trials, batch, step)
        for trial in trials:
            if trial.stopped:
                self.decisions.withdraw(trial.seed.id, step, trial.broken)

    def _consult(self, step: int) -> None:
        """Cull what is broken and ask the controller, where the log can be relied on."""
        if not self.decisions.allowed(step):
            return
        self.transitions.retry_cooldowns(step)
        for trial in self.watch.in_stages(LIVE):
            if trial.broken:
                self.transitions.cull(trial, step, trial.broken)
        for proposal in self._proposals(self.watch.observation(step)):
            self._carry_out(proposal, step)

    def _proposals(self, observation: Observation) -> tuple[Proposal, ...]:
        """The controller's, which stand on record before anything comes of them."""
        asked, policy = self._questioner.ask(observation), self._questioner.policy
        if asked.proposals:
            self._log.append(
                ControllerConsulted(
                    time=time.time(),
                    step=observation.step,
                    controller=policy.name,
                    policy=self._log.keep(canonical(policy)),
                    consultation=self._log.keep(canonical(asked)),
                )
            )
        return asked.proposals

    def _carry_out(self, proposal: Proposal, step: int) -> None:
        match proposal:
            case Plateau(loss=loss):
                figures = self.watch.plateau_figures(loss)
                self._log.append(PlateauDetected(time=time.time(), step=step, figures=figures))
            case Germinate():
                self._nursery.germinate(proposal, step)
            case Advance(seed=seed, reason=reason):
                trial = self._trial(seed)
                if trial and self.watch.ready(trial) and not self.decisions.pending(seed):
                    self._advance(trial, reason, step)
            case Cull(seed=seed, reason=reason):
                trial = self._trial(seed)
                if trial:
                    self.transitions.cull(trial, step, reason, consulted=step)

    def _trial(self, seed: int) -> Trial | None:
        """The trial of ``seed``; None when an earlier proposal has just ended it."""
        if not 0 <= seed < self._nursery.made:
            wanted = ", ".join(map(str, self.trials)) or "none, nothing is on trial"
            raise ValueError(f"the controller names seed {seed}, wanted one on trial: {wanted}")
        return self.trials.get(seed)

    def _advance(self, trial: Trial, reason: str, step: int) -> None:
        if live_stage(self.lattice, trial) is Stage.GERMINATED:
            self._nursery.admit(trial, reason, step)
            return
        result = self._gatekeeper.ask(trial, step)
        if result.passed:
            self.transitions.advance(trial, step, f"{reason}: {result.reason}", step)
        elif result.final:
            self.transitions.cull(trial, step, result.reason, consulted=step)
        else:
            trial.refusals += 1
            trial.refused_at = len(trial.gains)
