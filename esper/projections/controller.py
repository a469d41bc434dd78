"""What a controller can know of a run from its log: when growth was wanted, what was tried where,
what was measured, what the gates said, and what became of each decision."""

from __future__ import annotations

import math
from typing import TypeVar

import msgspec

from esper.projections.lattice import OpenDecision, decision_of
from esper.projections.pending import decide, settle
from esper.projections.projection import FoldedState, count
from esper_events.events import (
    BlueprintRegistered,
    BreakerChanged,
    GateMeasured,
    HostRolledBack,
    LocalObjective,
    PlateauDetected,
    Record,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
    TrialMeasured,
)
from esper_events.stages import Gate, Stage


class Plateau(msgspec.Struct, frozen=True):
    """The held-out loss, when it was found to fall no longer."""

    step: int
    loss: float


class Tournament(msgspec.Struct, frozen=True):
    """Seeds whose germination was decided at one step, so that they compete."""

    step: int
    seeds: tuple[int, ...]


class Gain(msgspec.Struct, frozen=True):
    """A measured fall of the held-out loss as a fraction of the host's, and its standard error."""

    step: int
    gain: float
    error: float


class GateAnswer(msgspec.Struct, frozen=True):
    """What a gate said; ``gain`` where it measured one."""

    step: int
    gate: Gate
    passed: bool
    gain: float | None


class TrialState(msgspec.Struct, frozen=True):
    """One seed. Slot and blueprint are empty until its germination is decided, ``objective`` is
    unset where it is the shadow objective."""

    slot: str = ""
    blueprint: str = ""
    stage: Stage = Stage.DORMANT
    gains: tuple[Gain, ...] = ()
    gates: tuple[GateAnswer, ...] = ()
    objective: LocalObjective | msgspec.UnsetType = msgspec.UNSET


class Tally(msgspec.Struct, frozen=True):
    """Decisions about one blueprint in one slot; what is neither applied nor lapsed is open."""

    taken: int = 0
    applied: int = 0
    lapsed: int = 0


class BreakerState(msgspec.Struct, frozen=True):
    """A circuit breaker: its state, since when, and how often it has opened."""

    state: str
    step: int
    opened: int


class ControllerState(FoldedState, frozen=True, tag="controller"):
    """All of it. ``decisions`` is by slot, then by blueprint; ``blueprints`` gives their names.

    ``error_spent`` is the share of the error budget that the ``fork_tests`` so far have used,
    ``steps_lost`` the host's steps that culls and rollbacks have cost.
    """

    blueprints: dict[str, str] = msgspec.field(default_factory=dict)
    plateaus: tuple[Plateau, ...] = ()
    tournaments: tuple[Tournament, ...] = ()
    trials: dict[int, TrialState] = msgspec.field(default_factory=dict)
    decisions: dict[str, dict[str, Tally]] = msgspec.field(default_factory=dict)
    open: dict[int, OpenDecision] = msgspec.field(default_factory=dict)
    breakers: dict[str, BreakerState] = msgspec.field(default_factory=dict)
    fork_tests: int = 0
    error_spent: float = 0.0
    steps_lost: int = 0


def fold(state: ControllerState, record: Record) -> ControllerState:
    """The state after ``record``.

    Raises:
        ProjectionError: the record is out of order, or settles a decision that is not open.
    """
    state = count(state, record)
    match record.event:
        case BlueprintRegistered(blueprint=digest, name=name):
            return _with(state, blueprints={**state.blueprints, digest: name})
        case PlateauDetected(step=step, figures=figures):
            plateau = Plateau(step, figures.get("held_out_loss", math.nan))
            return _with(state, plateaus=(*state.plateaus, plateau))
        case TrialMeasured() as measured:
            return _measured(state, measured)
        case GateMeasured() as measured:
            return _answered(state, measured)
        case TransitionDecided() as decided:
            return _decided(state, decided)
        case TransitionApplied() as applied:
            return _applied(state, applied)
        case TransitionLapsed(decision=number):
            decision, others = settle(state.open, number)
            return _tallied(_with(state, open=others), decision, lapsed=1)
        case HostRolledBack(step=step, to_step=to_step):
            return _with(state, steps_lost=state.steps_lost + step - to_step)
        case BreakerChanged() as changed:
            return _breaker(state, changed)
        case _:
            return state


def _measured(state: ControllerState, event: TrialMeasured) -> ControllerState:
    trial, figures = state.trials.get(event.seed, TrialState()), event.figures
    gain = Gain(event.step, figures.get("gain", math.nan), figures.get("error", math.nan))
    return _trial(state, event.seed, _with(trial, gains=(*trial.gains, gain)))


def _answered(state: ControllerState, event: GateMeasured) -> ControllerState:
    trial = state.trials.get(event.seed, TrialState())
    answer = GateAnswer(event.step, event.gate, event.passed, event.figures.get("gain"))
    state = _trial(state, event.seed, _with(trial, gates=(*trial.gates, answer)))
    if event.gate is not Gate.FORK:
        return state
    spent = state.error_spent + event.figures.get("level", 0.0)
    return _with(state, fork_tests=state.fork_tests + 1, error_spent=spent)


def _decided(state: ControllerState, event: TransitionDecided) -> ControllerState:
    trial = state.trials.get(event.seed, TrialState())
    state = _with(state, open=decide(state.open, event))
    state = _trial(state, event.seed, _with(trial, slot=event.slot, blueprint=event.blueprint))
    if event.target is Stage.GERMINATED:
        state = _trial(
            state, event.seed, _with(state.trials[event.seed], objective=event.objective)
        )
        state = _with(state, tournaments=_entered(state.tournaments, event))
    return _tallied(state, decision_of(event), taken=1)


def _entered(
    tournaments: tuple[Tournament, ...], event: TransitionDecided
) -> tuple[Tournament, ...]:
    if tournaments and tournaments[-1].step == event.step:
        joined = (*tournaments[-1].seeds, event.seed)
        return (*tournaments[:-1], Tournament(event.step, joined))
    return (*tournaments, Tournament(event.step, (event.seed,)))


def _applied(state: ControllerState, event: TransitionApplied) -> ControllerState:
    decision, others = settle(state.open, event.decision)
    trial = state.trials.get(decision.seed, TrialState())
    state = _with(state, open=others, steps_lost=state.steps_lost + event.steps_lost)
    state = _trial(state, decision.seed, _with(trial, stage=decision.target))
    return _tallied(state, decision, applied=1)


def _breaker(state: ControllerState, event: BreakerChanged) -> ControllerState:
    known = state.breakers.get(event.breaker)
    opened = (known.opened if known else 0) + (event.state == "open")
    breaker = BreakerState(event.state, event.step, opened)
    return _with(state, breakers={**state.breakers, event.breaker: breaker})


def _trial(state: ControllerState, seed: int, trial: TrialState) -> ControllerState:
    return _with(state, trials={**state.trials, seed: trial})


def _tallied(
    state: ControllerState,
    decision: OpenDecision,
    *,
    taken: int = 0,
    applied: int = 0,
    lapsed: int = 0,
) -> ControllerState:
    place = state.decisions.get(decision.slot, {})
    known = place.get(decision.blueprint, Tally())
    tally = Tally(known.taken + taken, known.applied + applied, known.lapsed + lapsed)
    place = {**place, decision.blueprint: tally}
    return _with(state, decisions={**state.decisions, decision.slot: place})


T = TypeVar("T", bound=msgspec.Struct)


def _with(struct: T, **changes: object) -> T:
    return msgspec.structs.replace(struct, **changes)
