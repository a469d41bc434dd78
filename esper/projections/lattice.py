"""The lattice as the log tells it: a pure fold of records into the state of every seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import msgspec

from esper_events.events import (
    Event,
    LatticeDeclared,
    LocalObjective,
    Record,
    SeedFolded,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
)
from esper_events.stages import Stage, is_legal


class ProjectionError(Exception):
    """A record that no correct trainer could have written at this point of the log."""


class SeedState(msgspec.Struct, frozen=True):
    """One seed: where it is, what it is, and the digest of its tensors at its last transition.

    ``objective`` is unset where it is the shadow objective.
    """

    slot: str
    blueprint: str
    stage: Stage
    weights: str = ""
    objective: LocalObjective | msgspec.UnsetType = msgspec.UNSET


class OpenDecision(msgspec.Struct, frozen=True):
    """A transition that was decided and neither applied nor lapsed yet."""

    seed: int
    slot: str
    blueprint: str
    source: Stage
    target: Stage
    objective: LocalObjective | msgspec.UnsetType = msgspec.UNSET


class LatticeState(msgspec.Struct, frozen=True):
    """Slots, seeds and open decisions after ``records`` records of the log.

    ``folded`` has, for each fossil that is part of a module's weights, that module's digest.
    """

    records: int = 0
    slots: tuple[str, ...] = ()
    seeds: dict[int, SeedState] = {}
    open: dict[int, OpenDecision] = {}
    lapsed: int = 0
    folded: dict[int, str] = {}

    def digest(self) -> str:
        """SHA-256 in hex of the state in msgpack, its mappings as pairs in order of their keys.

        ``records`` is left out: events about other things do not change the lattice. ``folded``
        is part of it where there is any.
        """
        seeds, decisions = sorted(self.seeds.items()), sorted(self.open.items())
        folded = (sorted(self.folded.items()),) if self.folded else ()
        parts = (self.slots, seeds, decisions, self.lapsed, *folded)
        return hashlib.sha256(msgspec.msgpack.encode(parts)).hexdigest()

    def fossils(self) -> list[tuple[int, SeedState]]:
        """Seeds that have become part of the host, oldest first."""
        return sorted((n, s) for n, s in self.seeds.items() if s.stage is Stage.FOSSILIZED)


def fold(state: LatticeState, record: Record) -> LatticeState:
    """The state after ``record``.

    Raises:
        ProjectionError: the record is out of order, or its transition cannot happen here.
    """
    if record.index != state.records:
        raise ProjectionError(
            f"got record {record.index}, wanted {state.records}: a gap in the log"
        )
    state = msgspec.structs.replace(state, records=state.records + 1)
    step = _FOLLOWED.get(type(record.event))
    return state if step is None else step(state, record.event)


def fold_all(records: Iterable[Record], state: LatticeState | None = None) -> LatticeState:
    """Fold every record in order, from ``state`` or from the beginning."""
    return reduce(fold, records, state or LatticeState())


def _declare(state: LatticeState, declared: LatticeDeclared) -> LatticeState:
    return msgspec.structs.replace(state, slots=tuple(slot.id for slot in declared.slots))


def _decide(state: LatticeState, decided: TransitionDecided) -> LatticeState:
    if decided.slot not in state.slots:
        raise ProjectionError(
            f"decision {decided.decision} names the unknown slot {decided.slot!r}"
        )
    if decided.decision in state.open:
        raise ProjectionError(f"decision {decided.decision} was made twice")
    entry = decision_of(decided)
    return msgspec.structs.replace(state, open={**state.open, decided.decision: entry})


def decision_of(event: TransitionDecided) -> OpenDecision:
    """What ``event`` intends."""
    return OpenDecision(
        event.seed, event.slot, event.blueprint, event.source, event.target, event.objective
    )


def _apply(state: LatticeState, applied: TransitionApplied) -> LatticeState:
    decision, remaining = _take(state, applied.decision)
    known = state.seeds.get(decision.seed)
    stage = Stage.DORMANT if known is None else known.stage
    if known and (known.slot, known.blueprint) != (decision.slot, decision.blueprint):
        raise ProjectionError(
            f"decision {applied.decision} moves seed {decision.seed} to slot {decision.slot!r} or "
            f"another blueprint; it is in {known.slot!r} and stays what it is"
        )
    if stage is not decision.source or not is_legal(stage, decision.target):
        raise ProjectionError(
            f"decision {applied.decision} takes seed {decision.seed} from "
            f"{decision.source.value} to {decision.target.value}, but it is {stage.value}"
        )
    begins = decision.target is Stage.GERMINATED
    objective = decision.objective if known is None or begins else known.objective
    seed = SeedState(
        decision.slot, decision.blueprint, decision.target, applied.seed_weights, objective
    )
    return msgspec.structs.replace(
        state, open=remaining, seeds={**state.seeds, decision.seed: seed}
    )


def _fold_in(state: LatticeState, folded: SeedFolded) -> LatticeState:
    seed = state.seeds.get(folded.seed)
    if seed is None or seed.stage is not Stage.FOSSILIZED or seed.slot != folded.slot:
        raise ProjectionError(
            f"seed {folded.seed} is folded in slot {folded.slot!r}, but it is {seed}: wanted a "
            "fossil there"
        )
    if folded.seed in state.folded:
        raise ProjectionError(f"seed {folded.seed} is folded a second time")
    return msgspec.structs.replace(state, folded={**state.folded, folded.seed: folded.after})


def _lapse(state: LatticeState, lapsed: TransitionLapsed) -> LatticeState:
    _, remaining = _take(state, lapsed.decision)
    return msgspec.structs.replace(state, open=remaining, lapsed=state.lapsed + 1)


def _take(state: LatticeState, number: int) -> tuple[OpenDecision, dict[int, OpenDecision]]:
    decision = state.open.get(number)
    if decision is None:
        raise ProjectionError(f"decision {number} is settled, but it is not open")
    return decision, {key: value for key, value in state.open.items() if key != number}


_FOLLOWED: dict[type[Event], Callable[[LatticeState, Any], LatticeState]] = {
    LatticeDeclared: _declare,
    TransitionDecided: _decide,
    TransitionApplied: _apply,
    TransitionLapsed: _lapse,
    SeedFolded: _fold_in,
}
"""What each kind of event that bears on the lattice does to it."""


def first_difference(live: LatticeState, folded: LatticeState) -> str:
    """Where a running lattice and the one that its log tells part, in words."""
    nothing = SeedState("", "", next(iter(folded.seeds.values())).stage) if folded.seeds else None
    for number in sorted(live.seeds.keys() | folded.seeds.keys()):
        here, there = live.seeds.get(number, nothing), folded.seeds.get(number, nothing)
        if here != there:
            return f"seed {number} is {here}, the log says {there}"
    if live.folded != folded.folded:
        return f"folded are {live.folded}, the log says {folded.folded}"
    return f"{live.lapsed} lapses against {folded.lapsed}, open {folded.open}"
