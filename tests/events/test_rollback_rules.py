"""When a log may tell that a host went back to a checkpoint."""

from __future__ import annotations

import pytest

from esper_events.events import (
    BlueprintRegistered,
    CheckpointWritten,
    Event,
    HostRolledBack,
    LatticeDeclared,
    RollbackDecided,
    RunStarted,
    SlotDeclared,
    TransitionApplied,
    TransitionDecided,
)
from esper_events.rules import Rules
from esper_events.stages import Stage

BODY = b"body"
BLUEPRINT = "230d8358dc8e8890b4c58deeb62912ee2f20357ae92a5cc861b98e68fe31acb5"
FILE, WEIGHTS = "f" * 64, "w" * 64
UP = list(Stage)[1:7]

CHECKPOINT = CheckpointWritten(time=0.0, step=20, file=FILE, weights=WEIGHTS)
DECIDED = RollbackDecided(time=0.0, step=30, to_step=20, file=FILE, reason="loss is nan")
BACK = HostRolledBack(time=0.0, step=31, to_step=20, weights=WEIGHTS)


def begun() -> list[Event]:
    slot = SlotDeclared(
        id="s", source="output", start="s", end="s", in_shape=(1,), out_shape=(1,), in_axis=0,
        out_axis=0,
    )  # fmt: skip
    return [
        RunStarted(
            time=0.0, run="r", trainer_key=b"", host_weights="", config="", seed=0, version="",
            platform={},
        ),
        LatticeDeclared(time=0.0, slots=(slot,), left_out={}),
        BlueprintRegistered(time=0.0, blueprint=BLUEPRINT, name="b", body=BODY),
    ]  # fmt: skip


def risen(to: Stage, step: int) -> list[Event]:
    """A seed on its way up to a stage, all at one step."""
    told: list[Event] = []
    source = Stage.DORMANT
    for number, target in enumerate(UP[: UP.index(to) + 1]):
        told.append(
            TransitionDecided(
                time=0.0, decision=number, step=step, at_step=step, seed=0, slot="s",
                blueprint=BLUEPRINT, source=source, target=target, reason="",
            )
        )  # fmt: skip
        told.append(TransitionApplied(time=0.0, decision=number, step=step, seed_weights=""))
        source = target
    return told


def refusals(*told: Event) -> list[str]:
    rules = Rules()
    found = [rules.admit(event) for event in (*begun(), *told)]
    return [reason for reason in found if reason is not None]


def test_a_host_may_go_back_to_a_checkpoint_again_and_again() -> None:
    assert refusals(CHECKPOINT, DECIDED, BACK, DECIDED, BACK) == []
    assert refusals(*risen(Stage.FOSSILIZED, 20), CHECKPOINT, DECIDED, BACK) == []
    assert refusals(*risen(Stage.TRAINING, 25), CHECKPOINT, DECIDED, BACK) == []


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ([DECIDED], "of which no such checkpoint was written"),
        (
            [CheckpointWritten(time=0.0, step=10, file=FILE, weights=WEIGHTS), DECIDED],
            "of which no such checkpoint was written",
        ),
        ([CHECKPOINT, DECIDED, DECIDED], "is decided already"),
        ([CHECKPOINT, BACK], "which was never decided"),
        ([CHECKPOINT, DECIDED, BACK, BACK], "which was never decided"),
        (
            [CHECKPOINT, DECIDED, HostRolledBack(time=0.0, step=31, to_step=20, weights="other")],
            "to other weights than those of step 20",
        ),
        (
            [CHECKPOINT, *risen(Stage.FOSSILIZED, 25), DECIDED],
            "has the shape that it has since step 25",
        ),
        ([CHECKPOINT, DECIDED, *risen(Stage.EVALUATING, 30), BACK], "while seed 0 is grafted"),
    ],
    ids=["no file", "other step", "twice", "undecided", "done", "weights", "shape", "graft"],
)
def test_what_never_happens_is_refused(told: list[Event], reason: str) -> None:
    (found,) = refusals(*told)
    assert reason in found
