"""What controller, compiler and audit read out of one small history, and how they say it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from esper.projections.audit import Answers, AuditState, Lapse
from esper.projections.catalogue import AUDIT, COMPILER, CONTROLLER, LATTICE, PROJECTIONS
from esper.projections.compiler import BlueprintState
from esper.projections.controller import Gain, Tally, Tournament
from esper.projections.lattice import ProjectionError
from esper.projections.queries.rows import rows_of
from esper_events.events import (
    BlueprintRegistered,
    BreakerChanged,
    CheckpointWritten,
    Event,
    GateMeasured,
    HostRolledBack,
    PlateauDetected,
    Record,
    ReplicaChanged,
    RollbackDecided,
    RunEnded,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
    TrialMeasured,
)
from esper_events.keys import SigningKey
from esper_events.stages import Gate, Stage
from support.event_runs import folded, lattice, started

KEY = SigningKey.generate()
WIDEN, BOTTLE, SPARE = (hashlib.sha256(name).hexdigest() for name in (b"w", b"b", b"s"))
UP = (
    Stage.GERMINATED,
    Stage.TRAINING,
    Stage.GRAFTING,
    Stage.STABILIZING,
    Stage.EVALUATING,
    Stage.FOSSILIZED,
)


class History:
    """Two seeds compete; the winner is grafted and stays, the loser is culled."""

    def __init__(self) -> None:
        self.events: list[Event] = [started(KEY), lattice("fc", "head")]
        self.decisions = 0
        self.intended: dict[int, tuple[int, Stage]] = {}
        self.stages: dict[int, Stage] = {}
        for digest, name, body in ((WIDEN, "widen", b"w"), (BOTTLE, "bottle", b"bb")):
            self.say(BlueprintRegistered(time=0.0, blueprint=digest, name=name, body=body))
        self.say(BlueprintRegistered(time=0.0, blueprint=SPARE, name="spare", body=b"s"))
        self.say(PlateauDetected(time=0.0, step=10, figures={"held_out_loss": 0.5}))
        self.gate(0, Gate.GERMINATION, True)
        self.gate(1, Gate.GERMINATION, True)
        self.gate(2, Gate.GERMINATION, False)
        self.decide(10, 0, Stage.GERMINATED)
        self.decide(10, 1, Stage.GERMINATED)
        self.settle(0, 12)
        self.settle(1, 12)
        for seed in (0, 1):
            self.move(14, seed, Stage.TRAINING)
            self.gain(20, seed, 0.1 + seed)
        self.move(25, 0, Stage.CULLED, lost=0)
        self.gain(30, 1, math.nan)
        self.gate(1, Gate.SHADOW, False)
        self.gate(1, Gate.SHADOW, True)
        for stage in UP[2:5]:
            self.move(40, 1, stage)

    def say(self, event: Event) -> None:
        self.events.append(event)

    def decide(self, step: int, seed: int, target: Stage) -> int:
        number, self.decisions = self.decisions, self.decisions + 1
        self.say(
            TransitionDecided(
                time=0.0,
                decision=number,
                step=step,
                at_step=step + 2,
                seed=seed,
                slot="fc" if seed else "head",
                blueprint=WIDEN if seed else BOTTLE,
                source=self.stages.get(seed, Stage.DORMANT),
                target=target,
                reason="",
                objective="next_layer" if seed and target is Stage.GERMINATED else UNSET,
            )
        )
        self.intended[number] = (seed, target)
        return number

    def settle(self, number: int, step: int, lost: int = 0) -> None:
        seed, target = self.intended[number]
        self.stages[seed] = target
        self.say(
            TransitionApplied(
                time=0.0, decision=number, step=step, seed_weights="ab" * 32, steps_lost=lost
            )
        )

    def lapse(self, number: int, step: int, reason: str) -> None:
        self.say(TransitionLapsed(time=0.0, decision=number, step=step, reason=reason))

    def move(self, step: int, seed: int, target: Stage, lost: int = 0) -> None:
        self.settle(self.decide(step, seed, target), step + 2, lost)

    def gain(self, step: int, seed: int, gain: float) -> None:
        self.say(TrialMeasured(time=0.0, step=step, seed=seed, figures={"gain": gain}))

    def gate(self, seed: int, gate: Gate, passed: bool, **figures: float) -> None:
        self.say(
            GateMeasured(
                time=0.0, step=35, seed=seed, gate=gate, passed=passed, reason="", figures=figures
            )
        )

    def fossilize(self) -> None:
        self.gate(1, Gate.FORK, True, gain=0.2, level=0.25)
        self.move(50, 1, Stage.FOSSILIZED)

    def fall(self) -> None:
        self.gate(1, Gate.FORK, False, gain=-0.2, level=0.25)
        self.move(50, 1, Stage.CULLED, lost=7)

    def end(self, lattice_digest: str) -> None:
        self.say(
            RunEnded(
                time=0.0,
                step=60,
                outcome="completed",
                reason="",
                final_weights="f" * 64,
                lattice=lattice_digest,
                figures={"test_accuracy": 91.25},
            )
        )

    @property
    def records(self) -> list[Record]:
        return [Record(index, event) for index, event in enumerate(self.events)]


def states(history: History) -> dict[str, Any]:
    return {name: p.fold_all(history.records) for name, p in PROJECTIONS.items()}


def holds(lines: Sequence[str], *wanted: str) -> None:
    for line in wanted:
        assert line in lines, "\n".join(lines)


def test_what_a_controller_knows() -> None:
    history = History()
    history.fossilize()
    state = CONTROLLER.fold_all(history.records)
    assert state.blueprints == {WIDEN: "widen", BOTTLE: "bottle", SPARE: "spare"}
    assert [(p.step, p.loss) for p in state.plateaus] == [(10, 0.5)]
    assert state.tournaments == (Tournament(10, (0, 1)),)
    assert state.trials[0].stage is Stage.CULLED
    assert state.trials[1].stage is Stage.FOSSILIZED
    assert state.trials[2].slot == ""
    (gain,) = state.trials[0].gains
    assert (gain.step, gain.gain) == (20, 0.1)
    assert math.isnan(gain.error)
    assert isinstance(state.trials[1].gains[1], Gain)
    asked = [(a.gate, a.passed, a.gain) for a in state.trials[1].gates[1:]]
    assert asked == [
        (Gate.SHADOW, False, None),
        (Gate.SHADOW, True, None),
        (Gate.FORK, True, 0.2),
    ]
    assert state.decisions == {
        "head": {BOTTLE: Tally(3, 3, 0)},
        "fc": {WIDEN: Tally(6, 6, 0)},
    }
    assert (state.fork_tests, state.error_spent, state.steps_lost) == (1, 0.25, 0)


def test_a_controller_in_words() -> None:
    history = History()
    history.fossilize()
    lines = CONTROLLER.words(CONTROLLER.fold_all(history.records))
    holds(
        lines,
        "step 10: held-out loss 0.5, a plateau",
        "step 10: tournament of seeds 0, 1, won by seed 1",
        "seed 0: bottle in head culled; 1 measurement, last gain +10.0%, best +10.0%",
        "seed 1: widen in fc fossilized; objective next_layer; 2 measurements, last gain +nan%, "
        "best +110.0%; shadow gate refused 1 time",
        "seed 2: refused; germination gate refused 1 time",
        "widen in fc: 6 decisions, 6 applied, 0 lapsed",
        "1 fork test, error budget spent: 0.25, host steps lost: 0",
    )


def test_seeds_of_different_steps_do_not_compete() -> None:
    history = History()
    history.fossilize()
    history.decide(70, 3, Stage.GERMINATED)
    history.decide(71, 4, Stage.GERMINATED)
    assert [t.seeds for t in CONTROLLER.fold_all(history.records).tournaments] == [
        (0, 1),
        (3,),
        (4,),
    ]


def test_what_a_fall_costs_is_counted() -> None:
    history = History()
    history.fall()
    state = states(history)
    assert state["controller"].steps_lost == state["audit"].steps_lost == 7
    assert state["controller"].error_spent == 0.25


def test_open_and_lapsed_decisions_show_until_they_are_settled() -> None:
    history = History()
    number = history.decide(50, 1, Stage.CULLED)
    for name in ("lattice", "controller", "audit"):
        lines = PROJECTIONS[name].words(PROJECTIONS[name].fold_all(history.records))
        holds(lines, f"decision {number} is open: seed 1 from evaluating to culled")
    assert states(history)["compiler"].open.keys() == {number}
    history.lapse(number, 55, "silence")
    after = states(history)
    for name in ("lattice", "controller", "compiler"):
        assert after[name].open == {}
    assert after["controller"].decisions["fc"][WIDEN] == Tally(6, 5, 1)
    assert after["controller"].trials[1].stage is Stage.EVALUATING
    assert after["audit"].lapses == (Lapse(len(history.events) - 1, 55, number, "silence"),)
    holds(LATTICE.words(after["lattice"]), "decisions lapsed: 1")


def test_breakers_are_followed() -> None:
    history = History()
    for step, state in ((1, "open"), (2, "half-open"), (3, "open"), (4, "closed")):
        history.say(BreakerChanged(time=0.0, step=step, breaker="log", state=state, reason=""))
    controller = CONTROLLER.fold_all(history.records)
    breaker = controller.breakers["log"]
    assert (breaker.state, breaker.step, breaker.opened) == ("closed", 4, 2)
    holds(
        CONTROLLER.words(controller),
        "circuit breaker log: closed since step 4, opened 2 times",
    )


def test_steps_that_a_rollback_costs_are_counted_and_its_digests_kept() -> None:
    history = History()
    file, weights = "f" * 64, "w" * 64
    before = history.records
    history.say(CheckpointWritten(time=0.0, step=40, file=file, weights=weights))
    history.say(RollbackDecided(time=0.0, step=55, to_step=40, file=file, reason="loss is nan"))
    history.say(HostRolledBack(time=0.0, step=56, to_step=40, weights=weights))
    audit = AUDIT.fold_all(history.records)
    for projection in (AUDIT, CONTROLLER):
        lost = [projection.fold_all(told).steps_lost for told in (before, history.records)]
        assert lost[1] - lost[0] == 16
    assert audit.kinds["host.rolled_back"].last_step == 56
    assert LATTICE.fold_all(history.records).seeds == LATTICE.fold_all(before).seeds
    rows = [row for record in history.records for row in rows_of("run", record, 0, "actor")]
    kept = [row.values[2:] for row in rows if row.table == "digests" and row.values[2] in (55, 56)]
    assert kept == [
        (55, "checkpoint file", "", file),
        (56, "checkpoint weights", "", weights),
    ]


def test_a_plateau_without_its_figure_is_no_number() -> None:
    history = History()
    history.say(PlateauDetected(time=0.0, step=99, figures={}))
    assert math.isnan(CONTROLLER.fold_all(history.records).plateaus[-1].loss)


def test_what_a_compiler_knows() -> None:
    history = History()
    grown = COMPILER.fold_all(history.records)
    assert grown.blueprints[WIDEN] == BlueprintState("widen", 1, 1, 1, 0, 0)
    assert grown.blueprints[BOTTLE] == BlueprintState("bottle", 2, 1, 0, 0, 1)
    assert grown.blueprints[SPARE] == BlueprintState("spare", 1)
    assert COMPILER.words(grown) == [
        f"bottle ({BOTTLE[:12]}, 2 bytes) culled: 1 seed, 0 live, 0 kept, 1 culled",
        f"spare ({SPARE[:12]}, 1 bytes) registered",
        f"widen ({WIDEN[:12]}, 1 bytes) in use: 1 seed, 1 live, 0 kept, 0 culled",
    ]
    history.fossilize()
    kept = COMPILER.fold_all(history.records).blueprints[WIDEN]
    assert (kept.standing, kept.live, kept.kept) == ("kept", 0, 1)


def test_a_seed_of_a_culled_blueprint_puts_it_in_use_again() -> None:
    history = History()
    for stage in (Stage.EMBARGOED, Stage.DORMANT, Stage.GERMINATED):
        history.move(60, 0, stage)
    again = COMPILER.fold_all(history.records).blueprints[BOTTLE]
    assert (again.standing, again.germinated, again.live, again.culled) == ("in use", 2, 1, 1)


def test_what_an_auditor_asks_first() -> None:
    history = History()
    history.fossilize()
    history.say(ReplicaChanged(time=0.0, replica="js", state="lagging", behind=2, reason="away"))
    history.end(LATTICE.fold_all(history.records).digest())
    state: AuditState = AUDIT.fold_all(history.records)
    assert state.genesis is not None
    assert state.genesis.key == KEY.public.fingerprint
    assert state.genesis.config == hashlib.sha256(b"").hexdigest()
    assert (state.kinds["run.started"].count, state.kinds["run.started"].first_step) == (1, None)
    measured = state.kinds["trial.measured"]
    assert (measured.count, measured.first_step, measured.last_step) == (3, 20, 30)
    places = [n for n, event in enumerate(history.events) if isinstance(event, TrialMeasured)]
    assert (measured.first, measured.last) == (places[0], places[-1])
    assert sum(kind.count for kind in state.kinds.values()) == state.records
    assert state.gates["shadow"] == Answers(1, 1)
    assert state.applied["culled"] == 1
    assert state.applied["fossilized"] == 1
    holds(
        AUDIT.words(state),
        "run run-1, Esper 0, seed 7",
        f"written by {KEY.public.fingerprint}",
        "plateau.detected: 1, events 5 to 5, steps 10 to 10",
        "2 slots, 0 modules of the host without one",
        "gate shadow: passed 1, refused 1",
        "seeds that became fossilized: 1",
        f"event {len(history.events) - 2}: copy on js lagging, 2 segments behind: away",
        "completed at step 60, test_accuracy 91.25",
        f"its own digest of the lattice agrees with its history: {state.lattice.digest()}",
    )


def test_a_run_that_misstates_its_lattice_is_told_so() -> None:
    history = History()
    history.end("0" * 64)
    state = AUDIT.fold_all(history.records)
    assert state.end is not None
    assert not state.end.lattice_agrees
    assert f"its own digest of the lattice is NOT that of its history: {'0' * 64}" in AUDIT.words(
        state
    )


def test_a_log_that_goes_on_says_that_it_has_not_ended() -> None:
    assert AUDIT.words(AUDIT.fold_all(History().records))[-1] == "the run has not ended in this log"
    assert AUDIT.words(AUDIT.initial)[0] == "the run has not begun"


def test_a_run_under_a_key_that_signs_nothing_is_refused() -> None:
    bad = msgspec.structs.replace(started(KEY), trainer_key=bytes(32))
    with pytest.raises(ProjectionError, match="event 0: the run names a key that nobody can sign"):
        AUDIT.fold_all([Record(0, bad)])


def test_the_lattice_in_words() -> None:
    history = History()
    assert LATTICE.words(LATTICE.fold_all(history.records)) == [
        "slots: fc, head",
        f"seed 0: culled, {BOTTLE[:12]} in head, tensors abababababab",
        f"seed 1: evaluating, {WIDEN[:12]} in fc, objective next_layer, tensors abababababab",
    ]
    assert LATTICE.words(LATTICE.initial) == ["slots: none declared"]


@pytest.mark.parametrize("name", PROJECTIONS)
def test_no_part_of_a_state_is_left_out_of_its_digest(name: str) -> None:
    history = History()
    number = history.decide(50, 1, Stage.CULLED)
    history.lapse(number, 55, "silence")
    history.move(56, 1, Stage.CULLED, lost=3)
    history.gate(1, Gate.FORK, False, level=0.5)
    history.say(BreakerChanged(time=0.0, step=1, breaker="log", state="open", reason=""))
    history.say(ReplicaChanged(time=0.0, replica="js", state="lagging", behind=2, reason="away"))
    left_out = msgspec.structs.replace(lattice("fc", "head"), left_out={"tail": "no slot"})
    history.say(left_out)
    history.decide(58, 1, Stage.EMBARGOED)
    for stage in (Stage.GERMINATED, Stage.TRAINING, *UP[2:5], Stage.FOSSILIZED):
        history.move(60, 3, stage)
    history.say(folded(3, "fc"))
    history.end("")
    projection = PROJECTIONS[name]
    state, empty = projection.fold_all(history.records), projection.initial
    fields = [field for field in state.__struct_fields__ if field != "records"]
    for field in fields:
        without = msgspec.structs.replace(state, **{field: getattr(empty, field)})
        assert without.digest() != state.digest(), field
    counted = msgspec.structs.replace(state, records=state.records + 1)
    assert counted.digest() == state.digest()
