"""The history in words: one line for each event."""

from __future__ import annotations

import hashlib

from esper_events.events import (
    OBJECTS,
    BlueprintRegistered,
    BreakerChanged,
    CheckpointWritten,
    ControllerConsulted,
    Event,
    Figures,
    GateMeasured,
    HostRolledBack,
    KeyCertified,
    KeyRevoked,
    KeyRotated,
    LatticeDeclared,
    PassesSeparated,
    PlateauDetected,
    Record,
    ReplicaChanged,
    RollbackDecided,
    RunEnded,
    RunStarted,
    RunTakenOver,
    SeedFolded,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
    TrialMeasured,
    WeightsRecorded,
)
from esper_events.terminal import printable

_WIDTH = 500
_REMOVALS = {
    "": "",
    "removed": " (removed without trace)",
    "fork": " (the fork goes on in the host's place)",
    "snapshot": " (the snapshot is restored)",
}


def describe(record: Record) -> str:
    """One line, without control characters, that says what happened."""
    line = f"{record.index:>5}  {_say(record.event)}"
    line = printable(line)
    return line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "..."


def _say(event: Event) -> str:
    match event:
        case RunStarted():
            return f"run {event.run} starts (Esper {event.version}, seed {event.seed})"
        case KeyCertified():
            certificate = event.certificate
            return f"key {_fingerprint(certificate.key)} certified as {certificate.role.value}"
        case KeyRotated():
            return f"trainer's key rotated to {_fingerprint(event.trainer_key)}"
        case KeyRevoked():
            why = f" ({event.reason})" if event.reason else ""
            since = event.revocation.since
            return f"key {_fingerprint(event.revocation.key)} revoked from event {since} on{why}"
        case RunTakenOver():
            why = f" ({event.reason})" if event.reason else ""
            return f"run taken over by {event.holder} in lease epoch {event.epoch}{why}"
        case LatticeDeclared():
            left = f", {len(event.left_out)} modules left out" if event.left_out else ""
            names = ", ".join(slot.id for slot in event.slots) or "none"
            return f"lattice of {_count(len(event.slots), 'slot')}: {names}{left}"
        case BlueprintRegistered():
            return f"blueprint {event.name} registered as {event.blueprint[:12]}"
        case RunEnded():
            why = f" ({event.reason})" if event.reason else ""
            figures = _figures(event.figures)
            return f"step {event.step}: run {event.outcome}{why}{figures}"
        case ReplicaChanged():
            why = f": {event.reason}" if event.reason else ""
            what, unit = copy_of(event)
            behind = _count(event.behind, unit)
            return f"copy of the {what} is {event.state}, {behind} behind{why}"
        case _:
            return f"step {event.step}: {_say_step(event)}"


def copy_of(event: ReplicaChanged) -> tuple[str, str]:
    """What the copy is of, and where; and what it is counted in."""
    if event.replica.startswith(OBJECTS):
        return event.replica, "object"
    return f"log on {event.replica}", "segment"


def _say_step(
    event: PlateauDetected
    | TrialMeasured
    | GateMeasured
    | ControllerConsulted
    | TransitionDecided
    | TransitionApplied
    | TransitionLapsed
    | SeedFolded
    | WeightsRecorded
    | CheckpointWritten
    | RollbackDecided
    | HostRolledBack
    | BreakerChanged
    | PassesSeparated,
) -> str:
    match event:
        case PlateauDetected():
            return f"held-out loss has stopped falling{_figures(event.figures)}"
        case TrialMeasured():
            return f"seed {event.seed} measured in the shadow{_figures(event.figures)}"
        case GateMeasured():
            outcome = "passes" if event.passed else "fails"
            why = f": {event.reason}" if event.reason else ""
            gate, figures = event.gate.value, _figures(event.figures)
            return f"seed {event.seed} {outcome} the {gate} gate{why}{figures}"
        case ControllerConsulted():
            name = event.controller or "without a name"
            return f"controller {name} consulted, record {event.consultation[:12]}"
        case TransitionDecided():
            return _say_decision(event)
        case TransitionApplied():
            lost = f", {_count(event.steps_lost, 'step')} lost" if event.steps_lost else ""
            return f"decision {event.decision} applied{lost}"
        case TransitionLapsed():
            return f"decision {event.decision} lapsed: {event.reason}"
        case SeedFolded():
            return (
                f"seed {event.seed} in {event.slot} folded into {event.module}, whose digest goes "
                f"from {event.before[:12]} to {event.after[:12]} [difference "
                f"{event.difference:.2g} of {event.largest:.2g}]"
            )
        case WeightsRecorded():
            return f"the bits of {_count(len(event.tensors), 'tensor')} are on record"
        case CheckpointWritten():
            return f"checkpoint written, file {event.file[:12]}, weights {event.weights[:12]}"
        case RollbackDecided():
            return f"the host is to go back to its state of step {event.to_step}: {event.reason}"
        case HostRolledBack():
            lost = _count(event.step - event.to_step, "step")
            return f"the host is back at its state of step {event.to_step}, {lost} lost"
        case BreakerChanged():
            return f"circuit breaker {event.breaker} is {event.state}: {event.reason}"
        case PassesSeparated():
            return f"seeds share no pass for {event.purpose} any more: {event.reason}"


def _fingerprint(raw: bytes) -> str:
    return f"ed25519:{hashlib.sha256(raw).hexdigest()}"


def _say_decision(event: TransitionDecided) -> str:
    removal = _REMOVALS[event.removal]
    blueprint = f" ({event.blueprint[:12]})" if event.blueprint else ""
    objective = f" with the objective {event.objective}" if event.objective else ""
    return (
        f"decision {event.decision}: seed {event.seed}{blueprint} in {event.slot} goes from "
        f"{event.source.value} to {event.target.value}{removal}{objective} at step "
        f"{event.at_step}: {event.reason}"
    )


def _figures(figures: Figures) -> str:
    shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    return f" [{shown}]" if shown else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
