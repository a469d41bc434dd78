"""What an auditor asks first: who wrote what, from where to where, what was intended and not done,
and whether the run's own account of its end agrees with its history."""

from __future__ import annotations

import hashlib

import msgspec

from esper.projections import lattice
from esper.projections.lattice import LatticeState, ProjectionError
from esper.projections.projection import FoldedState, count
from esper_events.errors import PublicKeyError
from esper_events.events import (
    Figures,
    GateMeasured,
    HostRolledBack,
    LatticeDeclared,
    Record,
    ReplicaChanged,
    RunEnded,
    RunStarted,
    TransitionApplied,
    TransitionLapsed,
)
from esper_events.keys import PublicKey


class Genesis(msgspec.Struct, frozen=True):
    """How the run began. ``key`` is the fingerprint of the key that signs; ``config`` the SHA-256
    in hex of the configuration's text."""

    run: str
    key: str
    version: str
    seed: int
    host_weights: str
    config: str
    platform: dict[str, str]


class KindCount(msgspec.Struct, frozen=True):
    """Events of one kind: how many, indices of the first and last, and their steps where the kind
    has one."""

    count: int
    first: int
    last: int
    first_step: int | None
    last_step: int | None


class Answers(msgspec.Struct, frozen=True):
    """How often a gate opened, and how often it stayed shut."""

    passed: int = 0
    refused: int = 0


class Lapse(msgspec.Struct, frozen=True):
    """A decision that was never carried out."""

    index: int
    step: int
    decision: int
    reason: str


class ReplicaNote(msgspec.Struct, frozen=True):
    """A change of the standing of the log's copy."""

    index: int
    replica: str
    state: str
    behind: int
    reason: str


class Ending(msgspec.Struct, frozen=True):
    """How the run ended; ``lattice_agrees`` tells whether the digest of the lattice that it gives
    is the one that its log folds to."""

    step: int
    outcome: str
    reason: str
    final_weights: str
    lattice: str
    lattice_agrees: bool
    figures: Figures


class AuditState(FoldedState, frozen=True, tag="audit"):
    """All of it. ``gates`` is by gate, ``applied`` by the stage that seeds entered; ``left_out``
    counts the host's modules without a slot; ``lattice`` is the lattice's own projection."""

    genesis: Genesis | None = None
    kinds: dict[str, KindCount] = msgspec.field(default_factory=dict)
    left_out: int = 0
    gates: dict[str, Answers] = msgspec.field(default_factory=dict)
    applied: dict[str, int] = msgspec.field(default_factory=dict)
    steps_lost: int = 0
    lapses: tuple[Lapse, ...] = ()
    replicas: tuple[ReplicaNote, ...] = ()
    end: Ending | None = None
    lattice: LatticeState = LatticeState()


def fold(state: AuditState, record: Record) -> AuditState:
    """The state after ``record``.

    Raises:
        ProjectionError: the record is out of order, or its transition cannot happen here.
    """
    counted = _count_kind(count(state, record), record)
    followed = lattice.fold(state.lattice, record)
    return _note(msgspec.structs.replace(counted, lattice=followed), state.lattice, record)


def _count_kind(state: AuditState, record: Record) -> AuditState:
    event, index = record.event, record.index
    kind, step = str(type(event).__struct_config__.tag), getattr(event, "step", None)
    known = state.kinds.get(kind, KindCount(0, index, index, step, step))
    counted = KindCount(known.count + 1, known.first, index, known.first_step, step)
    return msgspec.structs.replace(state, kinds={**state.kinds, kind: counted})


def _note(state: AuditState, before: LatticeState, record: Record) -> AuditState:
    changes: dict[str, object] = {}
    match record.event:
        case RunStarted() as event:
            changes = {"genesis": _genesis(event)}
        case LatticeDeclared(left_out=left_out):
            changes = {"left_out": len(left_out)}
        case GateMeasured() as event:
            changes = {"gates": _asked(state.gates, event)}
        case TransitionApplied() as event:
            target = before.open[event.decision].target.value
            times = state.applied.get(target, 0) + 1
            lost = state.steps_lost + event.steps_lost
            changes = {"applied": {**state.applied, target: times}, "steps_lost": lost}
        case HostRolledBack() as event:
            changes = {"steps_lost": state.steps_lost + event.step - event.to_step}
        case TransitionLapsed() as event:
            lapse = Lapse(record.index, event.step, event.decision, event.reason)
            changes = {"lapses": (*state.lapses, lapse)}
        case ReplicaChanged() as event:
            note = ReplicaNote(record.index, event.replica, event.state, event.behind, event.reason)
            changes = {"replicas": (*state.replicas, note)}
        case RunEnded() as event:
            changes = {"end": _ending(event, before)}
    return msgspec.structs.replace(state, **changes)


def _genesis(event: RunStarted) -> Genesis:
    return Genesis(
        run=event.run,
        key=_fingerprint(event.trainer_key),
        version=event.version,
        seed=event.seed,
        host_weights=event.host_weights,
        config=hashlib.sha256(event.config.encode()).hexdigest(),
        platform=event.platform,
    )


def _fingerprint(raw: bytes) -> str:
    try:
        return PublicKey(raw).fingerprint
    except PublicKeyError as error:
        raise ProjectionError(f"the run names a key that nobody can sign by: {error}") from error


def _asked(gates: dict[str, Answers], event: GateMeasured) -> dict[str, Answers]:
    known = gates.get(event.gate.value, Answers())
    answers = Answers(known.passed + event.passed, known.refused + (not event.passed))
    return {**gates, event.gate.value: answers}


def _ending(event: RunEnded, before: LatticeState) -> Ending:
    return Ending(
        step=event.step,
        outcome=event.outcome,
        reason=event.reason,
        final_weights=event.final_weights,
        lattice=event.lattice,
        lattice_agrees=event.lattice == before.digest(),
        figures=event.figures,
    )
