"""Histories that a trainer could have written, made by Hypothesis; and logs on disk of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from esper_events.events import (
    BlueprintRegistered,
    BreakerChanged,
    Event,
    GateMeasured,
    LocalObjective,
    PlateauDetected,
    Record,
    ReplicaChanged,
    RunEnded,
    RunStarted,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
    TrialMeasured,
)
from esper_events.keys import SigningKey
from esper_events.rules import Rules
from esper_events.stages import TRANSITIONS, Gate, Stage
from support.event_runs import LOG, UP, applied, decided, folded, lattice, make_run

KEY = SigningKey.generate()
SLOTS = ("fc", "head", "a..b")
BODIES = {hashlib.sha256(body).hexdigest(): body for body in (b"one", b"two")}

_FLOATS = st.floats(width=64)
_FIGURES = st.dictionaries(
    st.sampled_from(("gain", "error", "level", "held_out_loss", "x")), _FLOATS, max_size=4
)
_TEXT = st.text(max_size=6)
_STEPS = st.integers(0, 99)
_OBJECTIVES: SearchStrategy[LocalObjective | msgspec.UnsetType] = st.sampled_from(
    (msgspec.UNSET, "reconstruction", "next_layer")
)


class Teller:
    """Tells a history: keeps to the rules of ``esper_events`` where a draw would break them."""

    def __init__(self, draw: DrawFn) -> None:
        self.draw = draw
        self.rules = Rules()
        self.events: list[Event] = []
        self.stages: dict[int, Stage] = {}
        self.places: dict[int, tuple[str, str]] = {}
        self.open: dict[int, TransitionDecided] = {}

    def say(self, event: Event) -> None:
        reason = self.rules.admit(event)
        if reason is not None:
            raise AssertionError(reason)
        self.events.append(event)

    def begin(self) -> None:
        platform = {"threads": "1", "torch": self.draw(_TEXT)}
        self.say(
            RunStarted(
                time=self.draw(_FLOATS),
                run=LOG,
                trainer_key=KEY.public.raw,
                host_weights="w",
                config=self.draw(_TEXT),
                seed=0,
                version="0",
                platform=platform,
            )
        )
        self.say(lattice(*SLOTS))
        for digest, body in BODIES.items():
            name = self.draw(_TEXT)
            self.say(BlueprintRegistered(time=0.0, blueprint=digest, name=name, body=body))

    def decide(self) -> None:
        number = len(self.stages)
        seed = self.draw(st.integers(0, number))
        stage = self.stages.setdefault(seed, Stage.DORMANT)
        place = (self.draw(st.sampled_from(SLOTS)), self.draw(st.sampled_from(sorted(BODIES))))
        slot, blueprint = self.places.setdefault(seed, place)
        targets = [t.target for t in TRANSITIONS if t.source is stage]
        if not targets:
            return
        target = self.draw(st.sampled_from(targets))
        objective = self.draw(_OBJECTIVES) if target is Stage.GERMINATED else msgspec.UNSET
        decided = TransitionDecided(
            time=self.draw(_FLOATS),
            decision=sum(isinstance(event, TransitionDecided) for event in self.events),
            step=self.draw(_STEPS),
            at_step=0,
            seed=seed,
            slot=slot,
            blueprint=blueprint,
            source=stage,
            target=target,
            reason=self.draw(_TEXT),
            objective=objective,
        )
        self.open[decided.decision] = decided
        self.say(decided)

    def settle(self) -> None:
        if not self.open:
            return
        number = self.draw(st.sampled_from(sorted(self.open)))
        decided, step = self.open.pop(number), self.draw(_STEPS)
        if self.stages[decided.seed] is decided.source and self.draw(st.integers(0, 3)):
            self.stages[decided.seed] = decided.target
            weights, lost = self.draw(_TEXT), self.draw(st.integers(0, 2))
            applied = TransitionApplied(
                time=0.0, decision=number, step=step, seed_weights=weights, steps_lost=lost
            )
            self.say(applied)
        else:
            reason = self.draw(_TEXT)
            self.say(TransitionLapsed(time=0.0, decision=number, step=step, reason=reason))

    def fossilize(self) -> None:
        """A seed from its beginning to its end as a fossil, folded into its module or not."""
        seed, slot, body = len(self.stages), self.draw(st.sampled_from(SLOTS)), min(BODIES)
        for source, target in pairwise(UP):
            number = sum(isinstance(event, TransitionDecided) for event in self.events)
            self.say(decided(number, source, target, seed, slot, body))
            self.say(applied(number))
        self.stages[seed], self.places[seed] = UP[-1], (slot, body)
        if self.draw(st.booleans()):
            self.say(folded(seed, slot))

    def measure(self) -> None:
        step, figures, text = self.draw(_STEPS), self.draw(_FIGURES), self.draw(_TEXT)
        seed, state = self.draw(st.integers(0, 3)), self.draw(st.sampled_from(("open", "closed")))
        said: Sequence[Event] = (
            PlateauDetected(time=0.0, step=step, figures=figures),
            TrialMeasured(time=0.0, step=step, seed=seed, figures=figures),
            GateMeasured(
                time=0.0,
                step=step,
                seed=seed,
                gate=self.draw(st.sampled_from(Gate)),
                passed=self.draw(st.booleans()),
                reason=text,
                figures=figures,
            ),
            BreakerChanged(time=0.0, step=step, breaker="log", state=state, reason=text),
            ReplicaChanged(time=0.0, replica=text, state="lagging", behind=seed, reason=text),
        )
        self.say(self.draw(st.sampled_from(said)))

    def end(self) -> None:
        self.say(
            RunEnded(
                time=0.0,
                step=self.draw(_STEPS),
                outcome="failed" if self.open else "completed",
                reason=self.draw(_TEXT),
                final_weights="f",
                lattice="l",
                figures=self.draw(_FIGURES),
            )
        )


@st.composite
def _histories(draw: DrawFn) -> list[Record]:
    teller = Teller(draw)
    teller.begin()
    acts = (teller.decide, teller.decide, teller.settle, teller.settle, teller.measure)
    for act in draw(st.lists(st.sampled_from(range(len(acts))), max_size=30)):
        acts[act]()
    if draw(st.integers(0, 3)) == 0:
        teller.fossilize()
    if draw(st.booleans()):
        teller.end()
    return [Record(index, event) for index, event in enumerate(teller.events)]


def histories() -> SearchStrategy[list[Record]]:
    """Records of a run from its genesis on, ended or not; figures may be no numbers."""
    return _histories()


def retimed(record: Record) -> Record:
    """The record at another time, the mappings in its event filled in the opposite order."""
    event = msgspec.structs.replace(record.event, time=12345.0)
    for name in ("figures", "platform", "left_out"):
        mapping = getattr(event, name, None)
        if mapping is not None:
            event = msgspec.structs.replace(event, **{name: dict(reversed(mapping.items()))})
    return Record(record.index, event)


def write_log(directory: Path, records: Sequence[Record], sizes: Sequence[int] = ()) -> Path:
    """Lay ``records`` out as a run directory in segments of ``sizes``, the last as large as it
    takes; its path."""
    groups, start = [], 0
    for size in sizes:
        groups.append([record.event for record in records[start : start + size]])
        start += size
    groups.append([record.event for record in records[start:]])
    make_run(KEY, [group for group in groups if group]).write(directory)
    return directory
