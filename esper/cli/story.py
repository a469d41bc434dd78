"""A run's history for people: one line for each thing that changed the model or was judged.

Where ``esper_events.words`` describes every event by itself, a story remembers: a decision and
its application become one line, and blueprints have names.
"""

from __future__ import annotations

from esper_events.events import (
    BlueprintRegistered,
    BreakerChanged,
    Event,
    GateMeasured,
    HostRolledBack,
    LatticeDeclared,
    PassesSeparated,
    PlateauDetected,
    Record,
    ReplicaChanged,
    RollbackDecided,
    RunEnded,
    RunStarted,
    SeedFolded,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
)
from esper_events.stages import Gate, Stage
from esper_events.terminal import printable
from esper_events.words import copy_of

_REMOVALS = {
    "": "",
    "removed": " and removed without trace",
    "fork": ", the fork goes on in its place",
    "snapshot": ", the snapshot is restored",
}
_COOLING = frozenset({Stage.EMBARGOED, Stage.DORMANT})
_ROUTINE = _COOLING | {Stage.TRAINING}
"""Stages that are entered for one reason only, which needs no telling."""
_TOLD_GATES = frozenset({Gate.SHADOW, Gate.FORK})
"""Gates whose figures a person wants; the others show in the transition that they allow."""


class Story:
    """Tells records in the order of the log."""

    def __init__(self) -> None:
        self._blueprints: dict[str, str] = {}
        self._decisions: dict[int, TransitionDecided] = {}
        self._names: dict[int, str] = {}
        self._costs: dict[int, float] = {}

    def tell(self, record: Record) -> str | None:
        """The line for a record, without control characters; None where there is none."""
        told = self._tell(record.event)
        if told is None:
            return None
        step, text = told
        place = "" if step is None else f"step {step}"
        return printable(f"{place:<10} {text}")[:500]

    def _tell(self, event: Event) -> tuple[int | None, str] | None:
        match event:
            case RunStarted():
                return None, f"run {event.run} starts, seed {event.seed}"
            case LatticeDeclared():
                slots = ", ".join(slot.id for slot in event.slots) or "none"
                return None, f"{len(event.slots)} places to grow: {slots}"
            case BlueprintRegistered():
                self._blueprints[event.blueprint] = event.name
                return None
            case PlateauDetected():
                return event.step, f"held-out loss has stopped falling{_stalled(event.figures)}"
            case GateMeasured() if event.gate in _TOLD_GATES:
                return event.step, self._gate(event)
            case GateMeasured() if event.gate is Gate.GERMINATION:
                self._costs[event.seed] = event.figures.get("parameters", 0.0)
                return None
            case TransitionDecided():
                self._decided(event)
                return None
            case TransitionApplied():
                return event.step, self._applied(event)
            case TransitionLapsed():
                return self._lapsed(event)
            case SeedFolded():
                return event.step, self._folded(event)
            case RollbackDecided():
                return event.step, f"the host is spoilt: {event.reason}"
            case HostRolledBack():
                lost = event.step - event.to_step
                return event.step, f"the host is back at step {event.to_step}, {lost} steps lost"
            case BreakerChanged():
                return (
                    event.step,
                    f"circuit breaker {event.breaker} {event.state}: {event.reason}",
                )
            case PassesSeparated():
                return event.step, f"no shared passes for {event.purpose} from here: {event.reason}"
            case ReplicaChanged():
                return None, _replica(event)
            case RunEnded():
                return event.step, _ended(event)
            case _:
                return None

    def _decided(self, event: TransitionDecided) -> None:
        self._decisions[event.decision] = event
        name = self._blueprints.get(event.blueprint, event.blueprint[:12])
        self._names[event.seed] = f"seed {event.seed} ({name} in {event.slot})"

    def _seed(self, seed: int) -> str:
        return self._names.get(seed, f"seed {seed}")

    def _applied(self, event: TransitionApplied) -> str:
        decided = self._decisions.pop(event.decision, None)
        if decided is None:
            return f"decision {event.decision} applied"
        removal = _REMOVALS[decided.removal]
        lost = f", {event.steps_lost} steps lost" if event.steps_lost else ""
        told = decided.reason and decided.target not in _ROUTINE
        why = f": {decided.reason}" if told else ""
        cost = self._cost(decided.seed) if decided.target is Stage.FOSSILIZED else ""
        learns = f" with the objective {decided.objective}" if decided.objective else ""
        return (
            f"{self._seed(decided.seed)} {decided.source.value} -> "
            f"{decided.target.value}{learns}{removal}{lost}{cost}{why}"
        )

    def _cost(self, seed: int) -> str:
        cost = self._costs.get(seed)
        return "" if cost is None else f", {cost:,.0f} parameters more"

    def _folded(self, event: SeedFolded) -> str:
        return (
            f"{self._seed(event.seed)} folded into {event.module}: no parameters left, the output "
            f"differs by {event.difference:.2g} of {event.largest:.2g}"
        )

    def _lapsed(self, event: TransitionLapsed) -> tuple[int, str] | None:
        decided = self._decisions.pop(event.decision, None)
        if decided is None:
            return event.step, f"decision {event.decision} lapsed: {event.reason}"
        if decided.target in _COOLING:  # Nothing about the model hung on it.
            return None
        seed, stays = self._seed(decided.seed), decided.source.value
        return event.step, f"{seed} stays {stays}, the change lapsed: {event.reason}"

    def _gate(self, event: GateMeasured) -> str:
        verdict = "passes" if event.passed else "fails"
        why = f": {event.reason}" if event.reason else ""
        seed, figures = self._seed(event.seed), _figures(event.figures)
        return f"{seed} {verdict} the {event.gate.value} gate{why}{figures}"


def _replica(event: ReplicaChanged) -> str:
    what, unit = copy_of(event)
    if event.state == "level":
        return f"the copy of the {what} is whole"
    why = f": {event.reason}" if event.reason else ""
    return f"the copy of the {what} lags by {event.behind} {unit}s{why}"


def _ended(event: RunEnded) -> str:
    why = f" ({event.reason})" if event.reason else ""
    return f"run {event.outcome}{why}{_figures(event.figures)}"


def _stalled(figures: dict[str, float]) -> str:
    """Where the loss stands, and the layers that are held back most."""
    rest = dict(figures)
    loss = rest.pop("held_out_loss", None)
    parts = {key: rest.pop(key) for key in figures if key.startswith("unreachable/")}
    layers = []
    for key in sorted(parts, key=lambda key: -parts[key]):
        name = key.partition("/")[2]
        rank = rest.pop(f"effective_rank/{name}", None)
        reads = "" if rank is None else f", its input has an effective rank of {rank:.1f}"
        layers.append(
            f"{name} ({parts[key]:.0%} of what is asked of it exceeds its weights{reads})"
        )
    at = "" if loss is None else f" at {loss:.4g}"
    held = f"; held back most: {', '.join(layers)}" if layers else ""
    return f"{at}{held}{_figures(rest)}"


def _figures(figures: dict[str, float]) -> str:
    shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    return f" [{shown}]" if shown else ""
