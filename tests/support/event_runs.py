"""Small runs: their events, sealed and laid out as their writer leaves them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from esper_events.chain import ChainVerifier
from esper_events.checkpoint import Checkpoint, write_checkpoint
from esper_events.codec import encode_event
from esper_events.events import (
    BlueprintRegistered,
    ControllerConsulted,
    Event,
    LatticeDeclared,
    LocalObjective,
    PlateauDetected,
    RunEnded,
    RunStarted,
    SeedFolded,
    SlotDeclared,
    TransitionApplied,
    TransitionDecided,
)
from esper_events.framing import JOURNAL, frame
from esper_events.keys import SigningKey
from esper_events.merkle import MerkleTree
from esper_events.segment import GENESIS, seal, segment_hash
from esper_events.stages import Stage

LOG = "run-1"
BODY = b"blueprint"
BLUEPRINT = hashlib.sha256(BODY).hexdigest()

UP = (
    Stage.DORMANT,
    Stage.GERMINATED,
    Stage.TRAINING,
    Stage.GRAFTING,
    Stage.STABILIZING,
    Stage.EVALUATING,
    Stage.FOSSILIZED,
)
"""The way of a seed that earns its place."""


@dataclass(frozen=True)
class Run:
    """A run's segments with what a test needs to write, tamper with and forge them."""

    key: SigningKey
    groups: tuple[tuple[Event, ...], ...]
    segments: tuple[bytes, ...]
    note: bytes

    def write(self, directory: Path, checkpoint: bool = True) -> Path:
        """Lay the run out in ``directory``; the journal's path."""
        journal = directory / JOURNAL
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.write_bytes(b"".join(map(frame, self.segments)))
        if checkpoint:
            write_checkpoint(directory, self.note)
        return journal

    def verifier(self) -> ChainVerifier:
        """A verifier that has accepted the whole run."""
        verifier = ChainVerifier()
        for segment in self.segments:
            verifier.accept(segment)
        return verifier


def seal_all(key: SigningKey, groups: Sequence[Sequence[Event]], log: str = LOG) -> list[bytes]:
    segments: list[bytes] = []
    first_index, previous = 0, GENESIS
    for group in groups:
        data = [encode_event(event) for event in group]
        segments.append(seal(data, log=log, first_index=first_index, previous=previous, key=key))
        first_index, previous = first_index + len(group), segment_hash(segments[-1])
    return segments


def started(key: SigningKey) -> RunStarted:
    return RunStarted(
        time=1.0,
        run=LOG,
        trainer_key=key.public.raw,
        host_weights="",
        config="",
        seed=7,
        version="0",
        platform={},
    )


def lattice(*slots: str) -> LatticeDeclared:
    return LatticeDeclared(
        time=1.1,
        slots=tuple(
            SlotDeclared(
                id=slot,
                source="output",
                start=slot,
                end=slot,
                in_shape=(8,),
                out_shape=(8,),
                in_axis=0,
                out_axis=0,
            )
            for slot in slots
        ),
        left_out={},
    )


def blueprint(body: bytes = BODY, digest: str = BLUEPRINT) -> BlueprintRegistered:
    return BlueprintRegistered(time=1.2, blueprint=digest, name="b", body=body)


def consulted(step: int = 10) -> ControllerConsulted:
    digest = hashlib.sha256(b"").hexdigest()
    return ControllerConsulted(
        time=2.0, step=step, controller="c", policy=digest, consultation=digest
    )


def decided(
    decision: int,
    source: Stage,
    target: Stage,
    seed: int = 1,
    slot: str = "fc",
    blueprint: str = BLUEPRINT,
    objective: LocalObjective | msgspec.UnsetType = msgspec.UNSET,
    consulted: int | msgspec.UnsetType = msgspec.UNSET,
) -> TransitionDecided:
    return TransitionDecided(
        time=2.0,
        decision=decision,
        step=10,
        at_step=11,
        seed=seed,
        slot=slot,
        blueprint=blueprint,
        source=source,
        target=target,
        reason="",
        objective=objective,
        consulted=consulted,
    )


def applied(decision: int) -> TransitionApplied:
    return TransitionApplied(time=3.0, decision=decision, step=11, seed_weights="")


def folded(seed: int = 1, slot: str = "fc") -> SeedFolded:
    return SeedFolded(
        time=3.5,
        step=11,
        seed=seed,
        slot=slot,
        module=slot,
        before="before",
        after="after",
        difference=1e-7,
        largest=2.0,
    )


def ended() -> RunEnded:
    return RunEnded(
        time=4.0,
        step=20,
        outcome="completed",
        reason="",
        final_weights="",
        lattice="",
        figures={"loss": float("nan")},
    )


def make_run(key: SigningKey, groups: Sequence[Sequence[Event]]) -> Run:
    tree = MerkleTree()
    for group in groups:
        for event in group:
            tree.append(encode_event(event))
    note = Checkpoint(LOG, tree.size, tree.root()).sign(key)
    return Run(key, tuple(map(tuple, groups)), tuple(seal_all(key, groups)), note)


def opening(key: SigningKey) -> tuple[tuple[Event, ...], ...]:
    return (
        (started(key), lattice("fc"), blueprint()),
        (
            PlateauDetected(time=1.5, step=9, figures={"loss": float("inf")}),
            decided(1, Stage.DORMANT, Stage.GERMINATED),
            applied(1),
        ),
    )
