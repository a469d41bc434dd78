"""What each transition does to the host, and how it is decided."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol

from esper.kasmina._lattice import AlphaSchedule
from esper.kasmina.digest import model_digest
from esper.kasmina.errors import ObjectiveError
from esper.kasmina.fold import FoldError
from esper.kasmina.onward import Onward, find_onward
from esper.kasmina.seed import Seed
from esper.projections.lattice import LatticeState, SeedState
from esper.tolaria.context import Context
from esper.tolaria.decisions import Change, Effect
from esper.tolaria.fork_trial import ForkTrial
from esper.tolaria.trials import Trial, give_optimizer, live_stage, new_seed
from esper_events.events import SeedFolded, recorded
from esper_events.stages import BLENDED, Stage

_logger = logging.getLogger("esper.tolaria")

Removal = Literal["", "removed", "fork", "snapshot"]

NEXT = {
    Stage.GERMINATED: Stage.TRAINING,
    Stage.TRAINING: Stage.GRAFTING,
    Stage.GRAFTING: Stage.STABILIZING,
    Stage.STABILIZING: Stage.EVALUATING,
    Stage.EVALUATING: Stage.FOSSILIZED,
}
"""The stage that a seed on its way up enters after each."""


def _nothing() -> None:
    return None


class Decider(Protocol):
    """Where transitions go to be decided: the log's decisions, or those of a run before."""

    def decide(self, step: int, change: Change, delay: int | None = None) -> None: ...

    def pending(self, seed: int) -> bool: ...

    def heading(self, seed: int, target: Stage) -> bool: ...

    def withdraw(self, seed: int, step: int, reason: str) -> None: ...


class Transitions:
    """Decides transitions of seeds and carries them out when they take effect."""

    def __init__(
        self, context: Context, decisions: Decider, folds: Callable[[int], bool] | None = None
    ) -> None:
        """``folds`` tells which fossils to fold; by default, as the settings want, all that can
        be."""
        self.trials: dict[int, Trial] = {}
        self.fossils: list[Trial] = []
        self.weights: dict[int, str] = {}
        self.folded: dict[int, str] = {}
        self.fork: ForkTrial | None = None
        self._cooling: dict[int, Trial] = {}
        self._context = context
        self._lattice = context.lattice
        self._settings = context.settings
        self._decisions = decisions
        self._folds = folds or (lambda _: context.settings.fold)

    @property
    def fossil_parameters(self) -> int:
        """Parameters that all fossils together have added to the host; folded ones none."""
        return sum(p.numel() for trial in self.fossils for p in trial.seed.parameters)

    def state(self, records: int, lapsed: int) -> LatticeState:
        """The running lattice in the terms of its projection."""
        seeds = {
            number: SeedState(
                seed.slot.id,
                seed.blueprint,
                self._lattice.stage(number),
                self.weights[number],
                recorded(seed.objective),
            )
            for number, seed in self._lattice.seeds.items()
        }
        slots = tuple(self._lattice.map.slots)
        return LatticeState(
            records=records, slots=slots, seeds=seeds, lapsed=lapsed, folded=dict(self.folded)
        )

    @property
    def quiet(self) -> bool:
        """Whether nothing is on trial or grafted; culled seeds may cool down."""
        return not self.trials and self.fork is None

    def snapshot(self) -> dict[str, Any]:
        """What there is to remember while it is quiet: every seed that there was."""
        lattice = self._lattice
        return {
            "seeds": [
                {
                    "number": number,
                    "slot": seed.slot.id,
                    "blueprint": seed.blueprint,
                    "objective": seed.objective,
                    "stage": lattice.stage(number).value,
                    "in_path": number in lattice.grafts,
                    "weights": self.weights[number],
                }
                for number, seed in lattice.seeds.items()
            ],
            "cooling": list(self._cooling),
            "folded": dict(self.folded),
            "fossils": [
                {
                    "seed": trial.seed.id,
                    "since": trial.since,
                    "gains": list(trial.gains),
                    "refusals": trial.refusals,
                }
                for trial in self.fossils
            ],
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go on from a :meth:`snapshot`; the tensors of fossils are the caller's to fill."""
        lattice, run_seed = self._lattice, self._context.run_seed
        blueprints = {blueprint.id: blueprint for blueprint in self._context.library}
        for known in kept["seeds"]:
            slot, blueprint = lattice.map.slots[known["slot"]], blueprints[known["blueprint"]]
            objective = known.get("objective", "shadow")
            seed = new_seed(known["number"], slot, blueprint, run_seed, objective)
            lattice.restore(seed, Stage(known["stage"]), in_path=known["in_path"])
            if not known["in_path"]:
                lattice.forget(seed)
            self.weights[seed.id] = known["weights"]
        self.folded.update(kept["folded"])
        for number in kept["cooling"]:
            seed = lattice.seeds[number]
            self._cooling[number] = Trial(seed, blueprints[seed.blueprint], since=0)
        for entry in kept["fossils"]:
            seed = lattice.seeds[entry["seed"]]
            trial = Trial(seed, blueprints[seed.blueprint], entry["since"], entry["gains"])
            trial.refusals = entry["refusals"]
            self.fossils.append(trial)

    def cooldown(self, seed: int) -> Change:
        """The next step of the way back of the culled ``seed``: embargo first, then dormant."""
        trial = self._cooling[seed]
        embargoed = live_stage(self._lattice, trial) is Stage.EMBARGOED
        target = Stage.DORMANT if embargoed else Stage.EMBARGOED

        def apply(at: int) -> Effect:
            self._lattice.advance(trial.seed, target)
            if target is Stage.EMBARGOED:
                self._cool_down(trial, at)
            else:
                del self._cooling[trial.seed.id]
            return Effect(self.weights[trial.seed.id])

        reason = "the slot has cooled down" if embargoed else "the slot cools down"
        return self._change(trial, target, reason, apply)

    def mark(self) -> None:
        """Remember, for a fork, what the next live step starts from."""
        if self.fork is not None:
            self.fork.mark()

    def germinate(self, trial: Trial, step: int, reason: str, consulted: int | None = None) -> None:
        """Decide that ``trial`` begins, as the controller proposed at step ``consulted``; here and
        below, None where it was not asked."""
        self.trials[trial.seed.id] = trial

        def apply(at: int) -> Effect:
            self._lattice.germinate(trial.seed)
            return self._entered(trial, at)

        def drop() -> None:
            del self.trials[trial.seed.id]

        self._decide(trial, step, Stage.GERMINATED, reason, apply, lapsed=drop, consulted=consulted)

    def advance(self, trial: Trial, step: int, reason: str, consulted: int | None = None) -> None:
        """Decide that ``trial`` enters the stage after its own."""
        source = live_stage(self._lattice, trial)
        effects: dict[Stage, Callable[[Trial], None]] = {
            Stage.GERMINATED: self._start_training,
            Stage.TRAINING: self._start_graft,
            Stage.GRAFTING: lambda t: self._lattice.advance(t.seed, Stage.STABILIZING),
            Stage.STABILIZING: lambda t: self._lattice.advance(t.seed, Stage.EVALUATING),
            Stage.EVALUATING: self._fossilize,
        }

        def apply(at: int) -> Effect:
            effects[source](trial)
            effect = self._entered(trial, at)
            if NEXT[source] is Stage.FOSSILIZED:
                return replace(effect, events=self._fold(trial, at))
            return effect

        self._decide(trial, step, NEXT[source], reason, apply, consulted=consulted)

    def cull(
        self,
        trial: Trial,
        step: int,
        reason: str,
        delay: int | None = None,
        consulted: int | None = None,
        removal: Removal = "",
    ) -> None:
        """Decide that ``trial`` ends.

        Unless ``removal`` says how: before its graft it is removed; from then on the fork goes on
        in the host's place, or, where that is spoilt too, the snapshot of when the graft began.
        Whatever else was under way for it lapses: it must not fossilize on its way out.
        """
        if self._decisions.heading(trial.seed.id, Stage.CULLED):
            return
        self._decisions.withdraw(trial.seed.id, step, reason)
        if live_stage(self._lattice, trial) is Stage.DORMANT:
            return
        removal = removal or self._removal(trial)

        def apply(at: int) -> Effect:
            effect = self._entered(trial, at)
            lost = self._take_out(trial, removal)
            self._cool_down(trial, at)
            return replace(effect, steps_lost=lost)

        self._decide(
            trial,
            step,
            Stage.CULLED,
            reason,
            apply,
            removal=removal,
            delay=delay,
            consulted=consulted,
        )

    def retry_cooldowns(self, step: int) -> None:
        """Decide again what a silent log let lapse on a culled seed's way back to DORMANT."""
        for trial in list(self._cooling.values()):
            if not self._decisions.pending(trial.seed.id):
                self._cool_down(trial, step)

    def release(self) -> None:
        """Let go of the optimizer when a silent log kept a graft from ever being decided."""
        self._end_fork("")

    def _start_training(self, trial: Trial) -> None:
        give_optimizer(self._lattice, trial.seed, self._settings.seed_lr_scale)
        if trial.seed.objective == "next_layer":
            try:
                trial.seed.onward = self.onward(trial.seed)
            except ObjectiveError as error:
                trial.stop(str(error))
        self._lattice.advance(trial.seed, Stage.TRAINING)

    def onward(self, seed: Seed) -> Onward:
        """The way from the seed's slot to the next.

        Raises:
            ObjectiveError: there is none.
        """
        lattice, batch = self._lattice, self._context.parts.watch[0]
        return find_onward(
            lattice.model, seed.slot, lattice.map.slots, lambda: self._context.loss_fn(batch)
        )

    def _start_graft(self, trial: Trial) -> None:
        lattice = self._lattice
        loss_fn, update = self._context.loss_fn, self._context.update
        fork = ForkTrial(lattice.model, lattice.optimizer, loss_fn, update)
        lattice.start_graft(trial.seed, AlphaSchedule(self._settings.blend_steps))
        self.fork = fork

    def _fossilize(self, trial: Trial) -> None:
        self._end_fork("")
        self._lattice.fossilize(trial.seed)
        self.fossils.append(trial)
        del self.trials[trial.seed.id]

    def _fold(self, trial: Trial, step: int) -> tuple[SeedFolded, ...]:
        """Let the fossil become part of its module's weights, where that is exact composition."""
        seed = trial.seed
        if not trial.blueprint.affine or not self._folds(seed.id):
            return ()
        loss_fn, batch = self._context.loss_fn, self._context.parts.watch[0]
        try:
            folding = self._lattice.fold(seed, lambda: loss_fn(batch))
        except FoldError as error:
            _logger.info("seed %d stays beside %s: %s", seed.id, seed.slot.end, error)
            return ()
        self.folded[seed.id] = folding.after
        return (
            SeedFolded(
                time=time.time(),
                step=step,
                seed=seed.id,
                slot=seed.slot.id,
                module=folding.module,
                before=folding.before,
                after=folding.after,
                difference=folding.difference,
                largest=folding.largest,
            ),
        )

    def _removal(self, trial: Trial) -> Removal:
        """How ``trial`` leaves the host as things stand."""
        if self.fork is None or live_stage(self._lattice, trial) not in BLENDED:
            return "removed"
        batches, explosion = self._context.parts.watch, self._settings.explosion
        return "snapshot" if self.fork.spoilt(batches, explosion) else "fork"

    def _fit(self, removal: Removal) -> bool:
        """Whether what is to go on in the host's place has not been spoilt since."""
        return removal != "fork" or self.fork is None or self.fork.finite

    def _take_out(self, trial: Trial, removal: Removal) -> int:
        """Let the seed leave the host; the steps of training that are lost with it."""
        # It leaves the modules that it was put into; the state of the fork and of the snapshot,
        # taken before it came, knows nothing of it.
        self._lattice.remove(trial.seed)
        lost = self._end_fork(removal)
        self._lattice.advance(trial.seed, Stage.CULLED)
        self._lattice.forget(trial.seed)
        self._cooling[trial.seed.id] = self.trials.pop(trial.seed.id)
        return lost

    def _end_fork(self, removal: Removal) -> int:
        """Let the grown host go on, or what the seed's ``removal`` names; the steps lost."""
        if self.fork is None or removal == "removed":
            return 0
        fork, self.fork = self.fork, None
        if removal == "snapshot":
            fork.restore()
            return fork.steps
        if removal == "fork":
            fork.adopt()
        else:
            fork.discard()
        return 0

    def _cool_down(self, trial: Trial, step: int) -> None:
        """Decide the next step of a culled seed's way back."""
        change = self.cooldown(trial.seed.id)
        delay = self._settings.embargo if change.target is Stage.DORMANT else None
        self._decisions.decide(step, change, delay)

    def _entered(self, trial: Trial, step: int) -> Effect:
        trial.since = step
        digest = model_digest(trial.seed.body)
        self.weights[trial.seed.id] = digest
        return Effect(digest)

    def _decide(
        self,
        trial: Trial,
        step: int,
        target: Stage,
        reason: str,
        apply: Callable[[int], Effect],
        *,
        lapsed: Callable[[], None] = _nothing,
        removal: Removal = "",
        delay: int | None = None,
        consulted: int | None = None,
    ) -> None:
        change = self._change(trial, target, reason, apply, lapsed=lapsed, removal=removal)
        self._decisions.decide(step, replace(change, consulted=consulted), delay)

    def _change(
        self,
        trial: Trial,
        target: Stage,
        reason: str,
        apply: Callable[[int], Effect],
        *,
        lapsed: Callable[[], None] = _nothing,
        removal: Removal = "",
    ) -> Change:
        source = live_stage(self._lattice, trial)
        return Change(
            seed=trial.seed.id,
            slot=trial.seed.slot.id,
            blueprint=trial.seed.blueprint,
            source=source,
            target=target,
            reason=reason,
            apply=apply,
            still_holds=lambda: live_stage(self._lattice, trial) is source and self._fit(removal),
            lapsed=lapsed,
            removal=removal,
            objective=trial.seed.objective if target is Stage.GERMINATED else "shadow",
        )
