"""The life of a seed: its stages and the only transitions between them, as data.

This is the one table of the project. The C++ slot table and the auditor are both tested
against it over every pair of stages.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Stage(enum.Enum):
    """Where a seed stands; the value is the name that events carry."""

    DORMANT = "dormant"
    GERMINATED = "germinated"
    TRAINING = "training"
    GRAFTING = "grafting"
    STABILIZING = "stabilizing"
    EVALUATING = "evaluating"
    FOSSILIZED = "fossilized"
    CULLED = "culled"
    EMBARGOED = "embargoed"


class Gate(enum.Enum):
    """The check that a transition must pass; the value is the name that events carry."""

    GERMINATION = "germination"
    ISOLATION = "isolation"
    SHADOW = "shadow"
    BLEND = "blend"
    STABILITY = "stability"
    FORK = "fork"
    REMOVAL = "removal"
    COOLDOWN = "cooldown"


@dataclass(frozen=True)
class Transition:
    """One legal step of a seed's life and the gate that guards it."""

    source: Stage
    target: Stage
    gate: Gate


TRANSITIONS: tuple[Transition, ...] = (
    Transition(Stage.DORMANT, Stage.GERMINATED, Gate.GERMINATION),
    Transition(Stage.GERMINATED, Stage.TRAINING, Gate.ISOLATION),
    Transition(Stage.TRAINING, Stage.GRAFTING, Gate.SHADOW),
    Transition(Stage.GRAFTING, Stage.STABILIZING, Gate.BLEND),
    Transition(Stage.STABILIZING, Stage.EVALUATING, Gate.STABILITY),
    Transition(Stage.EVALUATING, Stage.FOSSILIZED, Gate.FORK),
    Transition(Stage.GERMINATED, Stage.CULLED, Gate.REMOVAL),
    Transition(Stage.TRAINING, Stage.CULLED, Gate.REMOVAL),
    Transition(Stage.GRAFTING, Stage.CULLED, Gate.REMOVAL),
    Transition(Stage.STABILIZING, Stage.CULLED, Gate.REMOVAL),
    Transition(Stage.EVALUATING, Stage.CULLED, Gate.REMOVAL),
    Transition(Stage.CULLED, Stage.EMBARGOED, Gate.COOLDOWN),
    Transition(Stage.EMBARGOED, Stage.DORMANT, Gate.COOLDOWN),
)

GATES: dict[tuple[Stage, Stage], Gate] = {(t.source, t.target): t.gate for t in TRANSITIONS}

BLENDED: frozenset[Stage] = frozenset({Stage.GRAFTING, Stage.STABILIZING, Stage.EVALUATING})
"""Stages in which the seed adds to the host's forward value while a fork trains beside it."""

LIVE: frozenset[Stage] = BLENDED | {Stage.GERMINATED, Stage.TRAINING}
"""Stages in which a seed is under trial and can still be culled."""


def is_legal(source: Stage, target: Stage) -> bool:
    """Whether a seed may go from ``source`` to ``target`` in one step."""
    return (source, target) in GATES
