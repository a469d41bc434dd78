"""What a log may say: the order of its events, and the life of every seed in it.

A signature proves who wrote an event, not that it makes sense. These checks are the ones that
hold for every correct run, whatever its settings.
"""

from __future__ import annotations

from esper_events.events import (
    Event,
    RunEnded,
    RunStarted,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
)
from esper_events.stages import Stage, is_legal


class Rules:
    """Follows one log from its first event; `admit` each in order."""

    def __init__(self) -> None:
        self.started = False
        self.ended = False
        self.open: dict[int, TransitionDecided] = {}
        """Decisions that are neither applied nor lapsed, by number."""
        self._decisions: set[int] = set()
        self._stages: dict[int, Stage] = {}
        self._slots: dict[int, str] = {}

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
        if isinstance(event, TransitionDecided):
            return self._decide(event)
        if isinstance(event, TransitionApplied):
            return self._apply(event)
        if isinstance(event, TransitionLapsed):
            return self._close(event)
        if isinstance(event, RunEnded):
            return self._end(event)
        return None

    def _decide(self, event: TransitionDecided) -> str | None:
        if event.decision in self._decisions:
            return f"decision {event.decision} is taken a second time"
        if not is_legal(event.source, event.target):
            return f"a seed never goes from {event.source.value} to {event.target.value}"
        slot = self._slots.setdefault(event.seed, event.slot)
        if slot != event.slot:
            return f"seed {event.seed} lives in slot {slot}, not in {event.slot}"
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
        return reason or self._close(event)

    def _close(self, event: TransitionApplied | TransitionLapsed) -> str | None:
        if self.open.pop(event.decision, None) is not None:
            return None
        if event.decision in self._decisions:
            return f"decision {event.decision} was already applied or lapsed"
        return f"decision {event.decision} was never taken"

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


def _kind(event: Event) -> str:
    return str(type(event).__struct_config__.tag)
