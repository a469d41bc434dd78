"""What is measured of host and seeds while they train, and how controller and people see it."""

from __future__ import annotations

import logging
import math

from esper.kasmina.host_optimizer import all_finite, trained_tensors
from esper.kasmina.shadow import held_out_losses
from esper.tamiyo.interface import Observation, SeedView
from esper.telemetry.errors import TelemetryError
from esper.telemetry.layers import layers_of
from esper.telemetry.meter import LayerMeter, held_back
from esper.telemetry.passes import measure
from esper.tolaria.context import Context
from esper.tolaria.decisions import Decisions
from esper.tolaria.explosion import exploded
from esper.tolaria.observer import SeedRow
from esper.tolaria.passes import ShadowPasses
from esper.tolaria.transitions import Transitions
from esper.tolaria.trials import Trial, candidates, live_stage, measured
from esper_events.events import Figures
from esper_events.stages import BLENDED, LIVE, Stage

_logger = logging.getLogger("esper.tolaria")

_HELD_BACK = 3
"""Layers that a plateau names."""


class Watch:
    """The history of the held-out loss, and views of the seeds on trial."""

    def __init__(
        self,
        context: Context,
        transitions: Transitions,
        decisions: Decisions,
        passes: ShadowPasses,
    ) -> None:
        self.held_out: list[tuple[int, float]] = []
        """(step, mean loss on the watched batches), oldest first; whole, because a controller's
        patience may reach far back."""
        self.spoilt = ""
        """What the latest observation found wrong with the host; empty for nothing."""
        self.worst: float | None = None
        """The largest held-out loss of a host that was not spoilt; None before the first."""
        self._context = context
        self._lattice = context.lattice
        self._settings = context.settings
        self._transitions = transitions
        self._decisions = decisions
        self._passes = passes

    @property
    def loss(self) -> float:
        """The latest held-out loss; not a number before the first."""
        return self.held_out[-1][1] if self.held_out else math.nan

    @property
    def budget(self) -> int:
        """Parameters that may still be added."""
        return self._settings.max_added_parameters - self._transitions.fossil_parameters

    def in_stages(self, stages: frozenset[Stage]) -> list[Trial]:
        """Trials whose seed stands in one of ``stages``, oldest first."""
        trials = self._transitions.trials.values()
        return [trial for trial in trials if live_stage(self._lattice, trial) in stages]

    def observe(self, step: int) -> None:
        """Measure the host, every seed on trial, and the graft under test."""
        loss_fn, batches = self._context.loss_fn, self._context.parts.watch
        baseline = held_out_losses(self._lattice.model, loss_fn, batches)
        self.held_out.append((step, sum(baseline) / len(baseline)))
        self._judge(self.loss)
        trials = [t for t in self.in_stages(frozenset({Stage.TRAINING})) if not t.broken]
        for trial, losses in zip(trials, self._passes.measure(trials, batches, step), strict=True):
            if losses is not None:
                self._context.log.append(measured(trial, baseline, losses, step))
        fork = self._transitions.fork
        for trial in self.in_stages(frozenset({Stage.EVALUATING})):
            if fork is not None and step - trial.since >= self._settings.evaluate_steps // 2:
                fork.measure(self._context.parts.confirm)

    def _judge(self, loss: float) -> None:
        """Find out whether the host is spoilt: a host alone may forget or spike and recover, so
        its loss is held to the worst that it has ever had."""
        self.spoilt = ""
        if self.worst is not None and exploded(loss, self.worst, self._settings.explosion):
            self.spoilt = f"held-out loss is {loss:g}, where it was {self.worst:g} at most"
        elif self.worst is not None and not all_finite(trained_tensors(self._lattice.optimizer)):
            self.spoilt = "weights or optimizer state are no numbers"
        elif math.isfinite(loss):
            self.worst = loss if self.worst is None else max(self.worst, loss)

    def plateau_figures(self, loss: float) -> Figures:
        """The held-out loss, the layers that are held back most, and where something is wrong."""
        model, context = self._lattice.model, self._context
        figures = {"held_out_loss": loss}
        layers = layers_of(model, self._lattice.map.slots.values())
        meters = [LayerMeter(layer) for layer in layers]
        try:
            for batch in context.parts.watch:
                measure(model, meters, context.loss_fn, batch, evaluation=True)
        except TelemetryError as error:
            _logger.warning("the layers cannot be measured: %s", error)
            return figures
        found = [meter.figures() for meter in meters]
        for layer in held_back(found)[:_HELD_BACK]:
            figures[f"unreachable/{layer.name}"] = layer.unreachable
            figures[f"effective_rank/{layer.name}"] = layer.effective_rank
        figures |= {f"dead_inputs/{s.name}": float(s.dead) for s in found if s.dead}
        figures |= {f"not_finite/{s.name}": float(s.not_finite) for s in found if s.not_finite}
        return figures

    def observation(self, step: int) -> Observation:
        """What the controller sees; seeds that can no longer be helped are not in it."""
        views = tuple(self._view(t, step) for t in self.in_stages(LIVE | {Stage.DORMANT}))
        library = self._context.library
        free = () if views else candidates(self._lattice, library, self.budget)
        fossils = len(self._transitions.fossils)
        return Observation(step, tuple(self.held_out), free, views, fossils)

    def ready(self, trial: Trial) -> bool:
        """Whether the next gate can have anything new to say.

        A stage that lasts a while is judged on a measurement made after that while, never on
        an older one.
        """
        settings = self._settings
        age = self.held_out[-1][0] - trial.since if self.held_out else -1
        match live_stage(self._lattice, trial):
            case Stage.GERMINATED:
                return not trial.entering
            case Stage.TRAINING:
                return len(trial.gains) > trial.refused_at and not self._grafting()
            case Stage.GRAFTING:
                return self._lattice.alpha(trial.seed.id) == 1.0
            case Stage.STABILIZING:
                return age >= settings.stabilize_steps
            case Stage.EVALUATING:
                fork = self._transitions.fork
                done = age >= settings.evaluate_steps
                return done and fork is not None and fork.measured
            case _:
                return False

    def rows(self) -> list[SeedRow]:
        """Fossils and live seeds as a person sees them, oldest first."""
        shown = [*self._transitions.fossils, *self._transitions.trials.values()]
        return [self._row(trial) for trial in sorted(shown, key=lambda trial: trial.seed.id)]

    def _grafting(self) -> bool:
        """Whether a graft is under test or about to be: there is one at a time."""
        return any(
            live_stage(self._lattice, trial) in BLENDED
            or self._decisions.heading(number, Stage.GRAFTING)
            for number, trial in self._transitions.trials.items()
        )

    def _view(self, trial: Trial, step: int) -> SeedView:
        stage = live_stage(self._lattice, trial)
        return SeedView(
            id=trial.seed.id,
            slot=trial.seed.slot.id,
            blueprint=trial.blueprint.name,
            stage=stage,
            age=step - trial.since,
            shadow_steps=trial.seed.shadow_steps,
            gains=tuple(trial.gains),
            ready=self.ready(trial),
            pending=stage is Stage.DORMANT or self._decisions.pending(trial.seed.id),
            refusals=trial.refusals,
            objective=trial.seed.objective,
        )

    def _row(self, trial: Trial) -> SeedRow:
        stage = live_stage(self._lattice, trial)
        return SeedRow(
            seed=trial.seed.id,
            slot=trial.seed.slot.id,
            blueprint=trial.blueprint.name,
            stage=stage,
            alpha=0.0 if stage is Stage.DORMANT else self._lattice.alpha(trial.seed.id),
            parameters=sum(p.numel() for p in trial.seed.parameters),
            folded=trial.seed.id in self._transitions.folded,
            gain=trial.gains[-1] if trial.gains else None,
        )
