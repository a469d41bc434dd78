"""What a log may say: the order of its events, and the life of every seed in it.

A signature proves who wrote an event, not that it makes sense. These checks are the ones that
hold for every correct run, whatever its settings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from msgspec import UNSET

from esper_events.events import (
    BlueprintRegistered,
    CheckpointWritten,
    ControllerConsulted,
    Event,
    HostRolledBack,
    LatticeDeclared,
    RollbackDecided,
    RunEnded,
    RunStarted,
    SeedFolded,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
)
from esper_events.stages import BLENDED, Stage, is_legal


class Rules:
    """Follows one log from its first event; `admit` each in order."""

    def __init__(self) -> None:
        self.started = False
        self.ended = False
        self.open: dict[int, TransitionDecided] = {}
        """Decisions that are neither applied nor lapsed, by number."""
        self._decisions: set[int] = set()
        self._consulted: set[int] = set()
        self._stages: dict[int, Stage] = {}
        self._seeds: dict[int, tuple[str, str]] = {}
        self._folded: set[int] = set()
        self._slots: set[str] = set()
        self._blueprints: set[str] = set()
        self._checkpoints: dict[str, CheckpointWritten] = {}
        self._rollback: RollbackDecided | None = None
        self._grown_at = 0

    def admit(self, event: Event) -> str | None:
        """Take ``event`` as the next one; the reason if it cannot stand there, else None."""
        if self.ended:
            return "an event after the end of the run"
        if isinstance(event, RunStarted) is self.started:
            return (
                "the run starts a second time"
                if self.started
                else f"the log begins with {_kind(event)}, wanted run.started"
            )
        self.started = True
        follow = _FOLLOWED.get(type(event))
        return None if follow is None else follow(self, event)

    def _declare(self, event: LatticeDeclared) -> str | None:
        self._slots.update(slot.id for slot in event.slots)
        return None

    def _register(self, event: BlueprintRegistered) -> str | None:
        if hashlib.sha256(event.body).hexdigest() != event.blueprint:
            return f"blueprint {event.name} does not have the digest that it is registered under"
        self._blueprints.add(event.blueprint)
        return None

    def _consult(self, event: ControllerConsulted) -> str | None:
        if event.step in self._consulted:
            return f"the controller is consulted at step {event.step} a second time"
        self._consulted.add(event.step)
        return None

    def _decide(self, event: TransitionDecided) -> str | None:
        if event.decision in self._decisions:
            return f"decision {event.decision} is taken a second time"
        if not is_legal(event.source, event.target):
            return f"a seed never goes from {event.source.value} to {event.target.value}"
        if event.slot not in self._slots:
            return f"slot {event.slot} was never declared"
        if event.blueprint not in self._blueprints:
            return f"blueprint {event.blueprint[:12]} was never registered"
        if event.objective and event.target is not Stage.GERMINATED:
            return f"seed {event.seed} is given an objective as it becomes {event.target.value}"
        if event.consulted is not UNSET and event.consulted not in self._consulted:
            return (
                f"decision {event.decision} follows from a consultation at step "
                f"{event.consulted}, and there was none"
            )
        slot, blueprint = self._seeds.setdefault(event.seed, (event.slot, event.blueprint))
        if (slot, blueprint) != (event.slot, event.blueprint):
            return f"seed {event.seed} is {blueprint[:12]} in slot {slot} and stays so"
        pending = any(decided.seed == event.seed for decided in self.open.values())
        # While another decision about the seed is open, its stage is settled only on applying.
        reason = None if pending else self._wrong_stage(event)
        self._decisions.add(event.decision)
        self.open[event.decision] = event
        return reason

    def _apply(self, event: TransitionApplied) -> str | None:
        decided = self.open.get(event.decision)
        if decided is None:
            return self._close(event)
        reason = self._wrong_stage(decided)
        self._stages[decided.seed] = decided.target
        if decided.target is Stage.FOSSILIZED:
            self._grown_at = event.step
        return reason or self._close(event)

    def _close(self, event: TransitionApplied | TransitionLapsed) -> str | None:
        if self.open.pop(event.decision, None) is not None:
            return None
        if event.decision in self._decisions:
            return f"decision {event.decision} was already applied or lapsed"
        return f"decision {event.decision} was never taken"

    def _fold(self, event: SeedFolded) -> str | None:
        stage = self._stages.get(event.seed, Stage.DORMANT)
        if stage is not Stage.FOSSILIZED:
            return f"seed {event.seed} is folded, but it is {stage.value}, not fossilized"
        if event.seed in self._folded:
            return f"seed {event.seed} is folded a second time"
        slot, _ = self._seeds[event.seed]
        if slot != event.slot:
            return f"seed {event.seed} is folded in slot {event.slot}, but it is in {slot}"
        self._folded.add(event.seed)
        return None

    def _write_checkpoint(self, event: CheckpointWritten) -> str | None:
        self._checkpoints[event.file] = event
        return None

    def _decide_rollback(self, event: RollbackDecided) -> str | None:
        written = self._checkpoints.get(event.file)
        if written is None or written.step != event.to_step:
            return f"a rollback to step {event.to_step}, of which no such checkpoint was written"
        if self._rollback is not None:
            return f"a rollback to step {self._rollback.to_step} is decided already"
        if not self._grown_at <= event.to_step <= event.step:
            return (
                f"a rollback at step {event.step} to step {event.to_step}, and the host has the "
                f"shape that it has since step {self._grown_at}"
            )
        self._rollback = event
        return None

    def _roll_back(self, event: HostRolledBack) -> str | None:
        decided, self._rollback = self._rollback, None
        if decided is None or decided.to_step != event.to_step:
            return f"the host is rolled back to step {event.to_step}, which was never decided"
        if self._checkpoints[decided.file].weights != event.weights:
            return f"the host is rolled back to other weights than those of step {event.to_step}"
        blended = [seed for seed, stage in self._stages.items() if stage in BLENDED]
        return f"the host is rolled back while seed {blended[0]} is grafted" if blended else None

    def _wrong_stage(self, decided: TransitionDecided) -> str | None:
        stage = self._stages.get(decided.seed, Stage.DORMANT)
        if stage is decided.source:
            return None
        return (
            f"decision {decided.decision} takes seed {decided.seed} from {decided.source.value}, "
            f"but it is {stage.value}"
        )

    def _end(self, event: RunEnded) -> str | None:
        self.ended = True
        if event.outcome == "completed" and self.open:
            number = min(self.open)
            return f"the run completed, but decision {number} was neither applied nor lapsed"
        return None


_FOLLOWED: dict[type[Event], Callable[[Rules, Any], str | None]] = {
    LatticeDeclared: Rules._declare,
    BlueprintRegistered: Rules._register,
    ControllerConsulted: Rules._consult,
    TransitionDecided: Rules._decide,
    TransitionApplied: Rules._apply,
    TransitionLapsed: Rules._close,
    SeedFolded: Rules._fold,
    CheckpointWritten: Rules._write_checkpoint,
    RollbackDecided: Rules._decide_rollback,
    HostRolledBack: Rules._roll_back,
    RunEnded: Rules._end,
}
"""What the rules do with each kind that they follow; the others may stand anywhere in a run."""


def _kind(event: Event) -> str:
    return str(type(event).__struct_config__.tag)
