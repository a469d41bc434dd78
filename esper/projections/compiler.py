"""What a compiler can know of a run from its log: which blueprints it may be asked for, and how
each has fared in the host. Certification of compiled kernels is in no log yet."""

from __future__ import annotations

import msgspec

from esper.projections.lattice import OpenDecision
from esper.projections.pending import decide, settle
from esper.projections.projection import FoldedState, count
from esper_events.events import (
    BlueprintRegistered,
    Record,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
)
from esper_events.stages import LIVE, Stage


class BlueprintState(msgspec.Struct, frozen=True):
    """One blueprint: its name, the bytes that describe it, and its seeds.

    ``germinated`` seeds have begun; of those ``live`` are on trial or blended now, ``kept`` have
    become part of the host, and ``culled`` have ended.
    """

    name: str = ""
    body_bytes: int = 0
    germinated: int = 0
    live: int = 0
    kept: int = 0
    culled: int = 0

    @property
    def standing(self) -> str:
        """The most that any of its seeds has come to: kept, in use, culled, or registered."""
        if self.kept:
            return "kept"
        if self.live:
            return "in use"
        return "culled" if self.culled else "registered"


class CompilerState(FoldedState, frozen=True, tag="compiler"):
    """Every blueprint known to the run, by digest, and the decisions that are under way."""

    blueprints: dict[str, BlueprintState] = msgspec.field(default_factory=dict)
    open: dict[int, OpenDecision] = msgspec.field(default_factory=dict)


def fold(state: CompilerState, record: Record) -> CompilerState:
    """The state after ``record``.

    Raises:
        ProjectionError: the record is out of order, or settles a decision that is not open.
    """
    state = count(state, record)
    match record.event:
        case BlueprintRegistered(blueprint=digest, name=name, body=body):
            known = state.blueprints.get(digest, BlueprintState())
            known = msgspec.structs.replace(known, name=name, body_bytes=len(body))
            return _put(state, digest, known)
        case TransitionDecided() as decided:
            return msgspec.structs.replace(state, open=decide(state.open, decided))
        case TransitionApplied(decision=number):
            decision, others = settle(state.open, number)
            return _moved(msgspec.structs.replace(state, open=others), decision)
        case TransitionLapsed(decision=number):
            _, others = settle(state.open, number)
            return msgspec.structs.replace(state, open=others)
        case _:
            return state


def _moved(state: CompilerState, decision: OpenDecision) -> CompilerState:
    known = state.blueprints.get(decision.blueprint, BlueprintState())
    target = decision.target
    moved = msgspec.structs.replace(
        known,
        germinated=known.germinated + (target is Stage.GERMINATED),
        live=known.live + (target in LIVE) - (decision.source in LIVE),
        kept=known.kept + (target is Stage.FOSSILIZED),
        culled=known.culled + (target is Stage.CULLED),
    )
    return _put(state, decision.blueprint, moved)


def _put(state: CompilerState, digest: str, blueprint: BlueprintState) -> CompilerState:
    return msgspec.structs.replace(state, blueprints={**state.blueprints, digest: blueprint})
