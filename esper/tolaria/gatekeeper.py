"""Asks the gate in front of a seed, and puts its answer on the record."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

from esper.kasmina.check import contract_check
from esper.kasmina.errors import ObjectiveError
from esper.kasmina.seed import Seed
from esper.kasmina.shadow import SEED_FAULTS, held_out_losses
from esper.telemetry.layers import layers_of, outside
from esper.tolaria import gates
from esper.tolaria.context import Context
from esper.tolaria.gates import GateResult
from esper.tolaria.statistics import paired_gain, spent
from esper.tolaria.transitions import NEXT, Transitions
from esper.tolaria.trials import Trial, live_stage
from esper.tolaria.watch import Watch
from esper_events.events import GateMeasured
from esper_events.stages import GATES, Gate, Stage

_ON_HELD_OUT = frozenset({Gate.SHADOW, Gate.FORK})


class Gatekeeper:
    """The gates of one run, with what they have to remember from one test to the next."""

    def __init__(self, context: Context, transitions: Transitions, watch: Watch) -> None:
        self._context = context
        self._lattice = context.lattice
        self._transitions = transitions
        self._watch = watch
        self._fork_tests = 0
        self._loss_before_graft = math.inf

    def examine(self, trial: Trial) -> Iterator[list[str]]:
        """What each part of the check of a germinated seed finds; what it raises is a finding."""
        context = self._context
        model, batch = self._lattice.model, context.parts.watch[0]
        try:
            yield from contract_check(model, trial.seed, context.loss_fn, batch)
        except SEED_FAULTS as error:
            yield [f"the seed fails: {error}"]

    def ask(self, trial: Trial, step: int, problems: Sequence[str] = ()) -> GateResult:
        """The gate that leads out of the trial's stage; ``problems`` are what :meth:`examine` has
        found.

        A seed that fails in its own check is refused for good; the host trains on.
        """
        source = live_stage(self._lattice, trial)
        target = Stage.GERMINATED if source is Stage.DORMANT else NEXT[source]
        try:
            result = self._measure(trial, source, step, problems)
        except SEED_FAULTS as error:
            if source is not Stage.TRAINING:
                raise
            result = GateResult(False, f"the seed fails: {error}", final=True)
        gate = GATES[source, target]
        told = result.reason
        if gate in _ON_HELD_OUT and self._context.parts.origin != "probe":
            told = f"{told}, on {self._context.parts.origin}"
        self._context.log.append(
            GateMeasured(
                time=time.time(),
                step=step,
                seed=trial.seed.id,
                gate=gate,
                passed=result.passed,
                reason=told,
                figures=result.figures,
            )
        )
        return result

    def snapshot(self) -> tuple[int, float]:
        """Tests of the fork gate so far, and the held-out loss before the latest graft."""
        return self._fork_tests, self._loss_before_graft

    def restore(self, kept: tuple[int, float]) -> None:
        """Go on from a :meth:`snapshot`."""
        self._fork_tests, self._loss_before_graft = kept

    def _obstacle(self, seed: Seed) -> str:
        """Why ``seed`` cannot learn from its objective in its slot; empty where it can."""
        try:
            if seed.objective == "next_layer":
                self._transitions.onward(seed)
        except ObjectiveError as error:
            return str(error)
        return ""

    def _measure(
        self, trial: Trial, source: Stage, step: int, problems: Sequence[str]
    ) -> GateResult:
        settings, parts, loss_fn = (
            self._context.settings,
            self._context.parts,
            self._context.loss_fn,
        )
        seed, model, fork = trial.seed, self._lattice.model, self._transitions.fork
        match source:
            case Stage.DORMANT:
                occupied = self._lattice.occupied(seed.slot.id)
                budget = self._watch.budget
                obstacle = self._obstacle(seed)
                return gates.germination(
                    seed, trial.blueprint, budget, occupied=occupied, obstacle=obstacle
                )
            case Stage.GERMINATED:
                return gates.isolation(problems)
            case Stage.TRAINING:
                base = held_out_losses(model, loss_fn, parts.shadow)
                grown = held_out_losses(model, loss_fn, parts.shadow, seed)
                self._loss_before_graft = self._watch.loss
                return gates.shadow(paired_gain(base, grown), settings.shadow_confidence)
            case Stage.GRAFTING:
                return gates.blend(self._lattice.alpha(seed.id))
            case Stage.STABILIZING:
                overdue = step - trial.since >= 3 * settings.stabilize_steps
                before, band = self._loss_before_graft, settings.stability_band
                return gates.stability(self._watch.loss, before, band, overdue)
            case _ if fork is not None:
                self._fork_tests += 1
                test, level = self._fork_tests, spent(settings.error_budget, self._fork_tests)
                result = gates.fork(fork.gain(), settings.min_effect, level, test, fork.steps)
                rest = layers_of(model, outside(self._lattice.map.slots.values(), seed.slot))
                result.figures["drift"] = fork.drift(rest, parts.watch[0])
                return result
        return GateResult(False, f"no gate leads out of {source.value}", final=True)
