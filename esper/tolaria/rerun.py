"""Training again with the logged decisions in the controller's place, held to the same bits.

No gate is asked and nothing is measured: what changes a host are its batches, the seeds on trial,
the fork, and the transitions at the steps at which the log says that they were applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from esper.kasmina.digest import model_digest, tensor_digests
from esper.projections.lattice import LatticeState
from esper.tolaria.checkpoint.host import HostState
from esper.tolaria.context import Context
from esper.tolaria.decisions import Change
from esper.tolaria.logged import LoggedRun, RerunError
from esper.tolaria.passes import ShadowPasses
from esper.tolaria.transitions import Transitions
from esper.tolaria.trials import Trial, live_stage, new_seed
from esper_events.events import (
    CheckpointWritten,
    Event,
    HostRolledBack,
    PassesSeparated,
    SeedFolded,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
    WeightsRecorded,
    objective_of,
)
from esper_events.stages import Stage

_AUTOMATIC = frozenset({Stage.EMBARGOED, Stage.DORMANT})
"""Targets of a culled seed's way back, which follow from the cull."""


@dataclass(frozen=True)
class Difference:
    """The first place where a re-run is not what its log tells."""

    step: int
    what: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.what}"


@dataclass(frozen=True)
class RerunReport:
    """A re-run against its log. ``checked`` counts the recorded digests that were compared;
    ``logged_weights`` are the final ones where the re-run has come to the log's end."""

    step: int
    final_weights: str
    logged_weights: str | None
    checked: int
    difference: Difference | None

    @property
    def identical(self) -> bool:
        """Whether everything that could be compared has the same bits."""
        return self.difference is None and self.logged_weights in (None, self.final_weights)


def report(
    logged: LoggedRun, rerun: Rerun | None, step: int, host_weights: str, model: nn.Module
) -> RerunReport:
    """Compare host at the start, recorded tensors, seeds at their transitions, and the end."""
    weights = model_digest(model)
    final = logged.ended.final_weights if logged.ended and logged.ended.step == step else None
    difference = rerun.difference if rerun is not None else None
    if host_weights != logged.started.host_weights:
        told = f"the host is {host_weights[:12]}, the log began with"
        difference = Difference(0, f"{told} {logged.started.host_weights[:12]}")
    elif difference is None and final not in (None, weights):
        difference = Difference(step, f"the final weights are {weights[:12]}, not {final}")
    checked = 1 + (final is not None) + (rerun.checked if rerun is not None else 0)
    return RerunReport(step, weights, final, checked, difference)


class LoggedDecisions:
    """Changes wait here until the log says that they were applied, or lapsed."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, Stage], Change] = {}

    def decide(self, step: int, change: Change, delay: int | None = None) -> None:
        """Keep ``change``; its step stands in the log."""
        self._waiting[change.seed, change.target] = change

    def pending(self, seed: int) -> bool:
        """Whether a change of ``seed`` waits."""
        return any(number == seed for number, _ in self._waiting)

    def heading(self, seed: int, target: Stage) -> bool:
        """Whether a change that waits takes ``seed`` to ``target``."""
        return (seed, target) in self._waiting

    def withdraw(self, seed: int, step: int, reason: str) -> None:
        """Let every change of ``seed`` that waits lapse."""
        for number, target in list(self._waiting):
            if number == seed:
                self._waiting.pop((number, target)).lapsed()

    def take(self, seed: int, target: Stage) -> Change | None:
        """The change that takes ``seed`` to ``target``, which waits no more; None without one."""
        return self._waiting.pop((seed, target), None)


class Rerun:
    """Stands in the engine's place and follows a log."""

    def __init__(self, context: Context, logged: LoggedRun, host: HostState | None) -> None:
        """``host`` is needed where the log goes back to what it was."""
        self.lattice = context.lattice
        self.difference: Difference | None = None
        self.checked = 0
        """Recorded digests that were compared."""
        self._decisions = LoggedDecisions()
        folded = logged.folded
        self.transitions = Transitions(context, self._decisions, folds=lambda n: n in folded)
        self._passes = ShadowPasses(context)
        self._context = context
        self._logged = logged
        self._lapsed = 0
        self._host = host
        self._back_to = logged.back_to
        self._kept: dict[int, dict[str, Any]] = {}

    @property
    def idle(self) -> bool:
        """Never: every step may be one that the log tells of."""
        return False

    def safe_point(self, step: int, batch: Any, loss: Tensor | float | None) -> None:
        """Do what the log says was done after optimizer step ``step``."""
        transitions = self.transitions
        if transitions.fork is not None:
            transitions.fork.follow(batch)
            self.lattice.tick()
        if step % self._context.settings.shadow_every == 0:
            self._train_trials(step, self._context.update.one(batch))
        for event in self._logged.at.get(step, ()):
            self._follow(event, step)
        if self._host is not None and step in self._back_to:
            # Its file may be anywhere, or nowhere any more.
            self._kept[step] = self._host.copied()
        transitions.mark()

    def conclude(self, step: int, reason: str) -> None:
        """Let go of the optimizer where a graft was never ended."""
        self.transitions.release()

    def state(self, records: int) -> LatticeState:
        """The lattice as far as it has been re-run."""
        return self.transitions.state(records, self._lapsed)

    def _train_trials(self, step: int, batch: Any) -> None:
        trials = self.transitions.trials.values()
        training = [t for t in trials if live_stage(self.lattice, t) is Stage.TRAINING]
        self._passes.train([t for t in training if not t.stopped], batch, step)

    def _follow(self, event: Event, step: int) -> None:
        match event:
            case TransitionDecided():
                self._decide(event, step)
            case TransitionApplied(decision=number, seed_weights=logged):
                change = self._change(number)
                if change is None:
                    raise RerunError(f"step {step}: decision {number} cannot be applied here")
                effect = change.apply(step)
                self._compare(step, f"seed {change.seed}", effect.seed_weights, logged)
            case TransitionLapsed(decision=number):
                self._lapsed += 1
                change = self._change(number)
                if change is not None:
                    change.lapsed()
            case SeedFolded(seed=seed, module=module, after=logged):
                here = self.transitions.folded.get(seed, "not folded")
                self._compare(step, f"module {module} with seed {seed} folded in", here, logged)
            case HostRolledBack(to_step=to_step, weights=logged):
                if self._host is None or to_step not in self._kept:
                    raise RerunError(f"step {step}: there was no step {to_step} to go back to")
                self._host.put_back(self._kept[to_step])
                self._compare(step, "the host", model_digest(self.lattice.model), logged)
            case CheckpointWritten(weights=logged):
                self._compare(step, "the host", model_digest(self.lattice.model), logged)
            case PassesSeparated():
                here = "separate" if "training" in self._passes.separate else "shared"
                self._compare(step, "the pass of seeds on trial", here, "separate")
            case WeightsRecorded(tensors=logged_tensors):
                self._compare_tensors(step, logged_tensors)

    def _change(self, number: int) -> Change | None:
        decided = self._logged.decided[number]
        return self._decisions.take(decided.seed, decided.target)

    def _decide(self, decided: TransitionDecided, step: int) -> None:
        """Bring the decided change about; the way back of a culled seed comes by itself, or
        again where it had lapsed."""
        if decided.target in _AUTOMATIC:
            if not self._decisions.pending(decided.seed):
                self.transitions.retry_cooldowns(step)
        elif decided.target is Stage.GERMINATED:
            self.transitions.germinate(self._born(decided, step), step, decided.reason)
        elif decided.target is Stage.CULLED:
            trial = self.transitions.trials[decided.seed]
            self.transitions.cull(trial, step, decided.reason, removal=decided.removal)
        else:
            trial = self.transitions.trials[decided.seed]
            self.transitions.advance(trial, step, decided.reason)

    def _born(self, decided: TransitionDecided, step: int) -> Trial:
        slot = self.lattice.map.slots.get(decided.slot)
        if slot is None:
            known = ", ".join(self.lattice.map.slots)
            raise RerunError(f"the log germinates in slot {decided.slot!r}, the host has {known}")
        blueprint = self._logged.blueprints[decided.blueprint]
        objective = objective_of(decided.objective)
        seed = new_seed(decided.seed, slot, blueprint, self._logged.started.seed, objective)
        return Trial(seed, blueprint, since=step)

    def _compare_tensors(self, step: int, logged: dict[str, str]) -> None:
        here = tensor_digests(self.lattice.model)
        if here.keys() != logged.keys():
            odd = sorted(here.keys() ^ logged.keys())[0]
            self._differs(step, f"tensor {odd} is in one of the two hosts only")
        for name, digest in here.items():
            if name in logged:
                self._compare(step, f"tensor {name}", digest, logged[name])

    def _compare(self, step: int, what: str, here: str, logged: str) -> None:
        self.checked += 1
        if here != logged:
            self._differs(step, f"{what} is {here[:12]}, the log says {logged[:12]}")

    def _differs(self, step: int, what: str) -> None:
        if self.difference is None:
            self.difference = Difference(step, what)
