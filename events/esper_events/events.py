"""The catalogue: every event that a run's log can hold.

Kinds are explicit strings, never Python import paths, so that a log outlives any refactoring.
``time`` is information for people (seconds since the epoch); no fold reads it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from esper_events.certificate import Certificate
from esper_events.revocation import Revocation
from esper_events.stages import Gate, Stage

Figures = dict[str, float]
"""Named measurements; units stand in the catalogue (``events/README.md``)."""

LocalObjective = Literal["reconstruction", "negative_gradient", "next_layer"]
"""What a seed in TRAINING learns from where that is not the host's own loss."""

Objective = Literal["shadow", LocalObjective]
"""What a seed in TRAINING learns from."""


def recorded(objective: Objective) -> LocalObjective | msgspec.UnsetType:
    """``objective`` as it stands on record, where the shadow objective is left out."""
    return msgspec.UNSET if objective == "shadow" else objective


def objective_of(on_record: LocalObjective | msgspec.UnsetType) -> Objective:
    """The objective that stands on record so."""
    return "shadow" if on_record is msgspec.UNSET else on_record


class _Event(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    time: float


class SlotDeclared(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A place where a seed can live: from the input of ``start`` to the output of ``end``.

    ``source`` tells what the seed reads: ``output`` the host's activation at ``end``,
    ``span`` the input of ``start``. ``in_shape`` and ``out_shape`` are per example, without
    the batch dimension.
    """

    id: str
    source: Literal["output", "span"]
    start: str
    end: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    in_axis: int
    out_axis: int


class RunStarted(_Event, frozen=True, tag="run.started"):
    """Genesis of a run: who writes it, what it trains, and on which platform.

    ``certificate`` is a root key's for ``trainer_key``; it is left out, on the wire too, where no
    root key vouches for the trainer's. ``next_key`` is the SHA-256 in hex of the raw public key
    that comes after ``trainer_key``, and is left out where there is none yet.
    """

    run: str
    trainer_key: bytes
    host_weights: str
    config: str
    seed: int
    version: str
    platform: dict[str, str]
    certificate: Certificate | msgspec.UnsetType = msgspec.UNSET
    next_key: str | msgspec.UnsetType = msgspec.UNSET


class KeyCertified(_Event, frozen=True, tag="key.certified"):
    """From here on the key of ``certificate`` may sign segments of this log, of the kinds that its
    role may write. The root is the one that the log began with."""

    certificate: Certificate


class KeyRotated(_Event, frozen=True, tag="key.rotated"):
    """From here on ``trainer_key``, which signs this, is the trainer's in the place of the one
    before. It is the key that the log has committed to, and ``next_key`` commits to the one that
    comes after it. ``certificate`` is the log's root's for it, left out in a log without a root.
    """

    trainer_key: bytes
    certificate: Certificate | msgspec.UnsetType = msgspec.UNSET
    next_key: str | msgspec.UnsetType = msgspec.UNSET


class KeyRevoked(_Event, frozen=True, tag="key.revoked"):
    """The log's root takes a key back: it may write no more, and what it signed from the event on
    that ``revocation`` names is not to be trusted. ``reason`` is for people."""

    revocation: Revocation
    reason: str


class RunTakenOver(_Event, frozen=True, tag="run.taken_over"):
    """Another writer goes on with the run in lease epoch ``epoch``; it signs this with
    ``trainer_key``, and from here on the writer before may write no more.

    ``after`` is the SHA-256 in hex of the segment that this one follows: what the writer before
    wrote behind that is no part of the log. ``certificate`` is the log's root's for
    ``trainer_key``, and ``next_key`` commits to the key that comes after it, as in `RunStarted`;
    both are left out, on the wire too, where ``trainer_key`` is the trainer's already.
    """

    epoch: int
    holder: str
    after: str
    trainer_key: bytes
    reason: str
    certificate: Certificate | msgspec.UnsetType = msgspec.UNSET
    next_key: str | msgspec.UnsetType = msgspec.UNSET


class LatticeDeclared(_Event, frozen=True, tag="lattice.declared"):
    """The slots that were found in the host, and why each other module was left out."""

    slots: tuple[SlotDeclared, ...]
    left_out: dict[str, str]


class BlueprintRegistered(_Event, frozen=True, tag="blueprint.registered"):
    """A blueprint's canonical bytes, so that the log explains itself; ``blueprint`` is their
    SHA-256 in hex."""

    blueprint: str
    name: str
    body: bytes


class PlateauDetected(_Event, frozen=True, tag="plateau.detected"):
    """The held-out loss has stopped falling."""

    step: int
    figures: Figures


class TrialMeasured(_Event, frozen=True, tag="trial.measured"):
    """The held-out gain of one seed in TRAINING, switched on in the shadow."""

    step: int
    seed: int
    figures: Figures


class GateMeasured(_Event, frozen=True, tag="gate.measured"):
    """The outcome of a gate with the figures that it saw."""

    step: int
    seed: int
    gate: Gate
    passed: bool
    reason: str
    figures: Figures


class ControllerConsulted(_Event, frozen=True, tag="controller.consulted"):
    """The controller was asked at ``step`` and proposed something; what it was shown, what it
    remembered and what it proposed are the canonical bytes whose SHA-256 in hex is
    ``consultation``, and what it decides by is described by those of ``policy``. Both lie in
    digest-named files of the run. ``controller`` is the name that it gives itself, "" without one.
    """

    step: int
    controller: str
    policy: str
    consultation: str


class TransitionDecided(_Event, frozen=True, tag="transition.decided"):
    """A change is intended: ``seed`` goes from ``source`` to ``target`` at ``at_step``.

    ``removal`` tells how a blended seed leaves the host when ``target`` is CULLED. ``objective``
    stands where ``target`` is GERMINATED and the seed will learn from a local objective; where it
    is left out, on the wire too, that is the shadow objective. ``consulted`` is the step of the
    consultation whose proposal led to this; it is left out where the controller was not asked.
    """

    decision: int
    step: int
    at_step: int
    seed: int
    slot: str
    blueprint: str
    source: Stage
    target: Stage
    reason: str
    removal: Literal["", "removed", "fork", "snapshot"] = ""
    objective: LocalObjective | msgspec.UnsetType = msgspec.UNSET
    consulted: int | msgspec.UnsetType = msgspec.UNSET


class TransitionApplied(_Event, frozen=True, tag="transition.applied"):
    """The decided change has been made to the running model before step ``step + 1``.

    ``seed_weights`` is the digest of the seed's tensors at that moment ("" when it has none).
    """

    decision: int
    step: int
    seed_weights: str
    steps_lost: int = 0


class TransitionLapsed(_Event, frozen=True, tag="transition.lapsed"):
    """The decided change was not made, and never will be."""

    decision: int
    step: int
    reason: str


class SeedFolded(_Event, frozen=True, tag="seed.folded"):
    """A fossil became part of the weights of ``module``, one of the host's own, and stands in the
    forward path no more.

    ``before`` and ``after`` are digests of the module's tensors. ``difference`` is the largest
    absolute difference that this made to the slot's output on a held-out batch, ``largest`` the
    largest absolute value there before.
    """

    step: int
    seed: int
    slot: str
    module: str
    before: str
    after: str
    difference: float
    largest: float


class WeightsRecorded(_Event, frozen=True, tag="weights.recorded"):
    """The host's bits after a step: the SHA-256 in hex of every tensor of its ``state_dict``, by
    name, in the canonical form of final weights. A re-run is held to it."""

    step: int
    tensors: dict[str, str]


class CheckpointWritten(_Event, frozen=True, tag="checkpoint.written"):
    """The state of training after ``step`` lies in a file of the run, so that a run that was
    killed can go on from there. ``file`` is the SHA-256 in hex of the file's bytes, ``weights``
    the digest of the host's tensors. It stands behind everything that happened up to ``step``,
    and may stand behind later events too: the file is written while training goes on."""

    step: int
    file: str
    weights: str


class RollbackDecided(_Event, frozen=True, tag="rollback.decided"):
    """The host is spoilt, and is to go on from the state that it had at the checkpoint of
    ``to_step``, whose file has the SHA-256 ``file``, in hex."""

    step: int
    to_step: int
    file: str
    reason: str


class HostRolledBack(_Event, frozen=True, tag="host.rolled_back"):
    """Before step ``step + 1`` the host got back what it had at the checkpoint of ``to_step``:
    weights, module state, optimizer state. Steps, data and schedules go on. ``weights`` is the
    digest of its tensors."""

    step: int
    to_step: int
    weights: str


class BreakerChanged(_Event, frozen=True, tag="breaker.changed"):
    """A circuit breaker opened, half-opened or closed."""

    step: int
    breaker: str
    state: Literal["closed", "open", "half-open"]
    reason: str


class PassesSeparated(_Event, frozen=True, tag="passes.separated"):
    """From ``step`` on seeds on trial that had shared a pass of the host have passes of their own,
    because the host or its objective cannot be run for several at once."""

    step: int
    purpose: Literal["training", "measuring"]
    reason: str


OBJECTS = "objects on "
"""What the name of a replica begins with that has the objects and checkpoints which a log names."""


class ReplicaChanged(_Event, frozen=True, tag="replica.changed"):
    """The copy of the log on the server fell behind the journal, or caught up with it; or that of
    the objects, whose name begins with `OBJECTS`."""

    replica: str
    state: Literal["lagging", "level"]
    behind: int
    reason: str


class RunEnded(_Event, frozen=True, tag="run.ended"):
    """The last event of a run."""

    step: int
    outcome: Literal["completed", "interrupted", "failed"]
    reason: str
    final_weights: str
    lattice: str
    figures: Figures


Event = (
    RunStarted
    | KeyCertified
    | KeyRotated
    | KeyRevoked
    | RunTakenOver
    | LatticeDeclared
    | BlueprintRegistered
    | PlateauDetected
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
    | PassesSeparated
    | ReplicaChanged
    | RunEnded
)

OF_WRITERS = (KeyCertified, KeyRotated, KeyRevoked, RunTakenOver)
"""Kinds that tell who writes the log, and nothing of the model."""


class Record(msgspec.Struct, frozen=True):
    """An event with its place in the log: what every fold reads."""

    index: int
    event: Event
