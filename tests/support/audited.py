"""A run worth auditing, taken into databases; and what they hold."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from esper.projections.queries import schema
from esper.projections.queries.database import database
from esper.projections.queries.update import Intake, Taken
from esper_events.events import (
    CheckpointWritten,
    Event,
    GateMeasured,
    Record,
    TransitionLapsed,
    TrialMeasured,
    WeightsRecorded,
)
from esper_events.keys import PublicKey
from esper_events.reader import LogReader
from esper_events.stages import Gate, Stage
from support.event_runs import UP, applied, blueprint, decided, ended, folded, lattice, started
from support.histories import KEY

VIEWS = ("decisions", "stages", "seeds")

Dump = dict[str, list[tuple[Any, ...]]]


def trial(step: int, gain: float) -> TrialMeasured:
    figures = {"gain": gain, "error": 0.01, "shadow_steps": 10.0}
    return TrialMeasured(time=2.5, step=step, seed=1, figures=figures)


def story() -> list[Event]:
    """A seed's life to its end as a folded fossil; a second one, whose second decision lapses."""
    gate = GateMeasured(
        time=2.6, step=11, seed=1, gate=Gate.FORK, passed=True, reason="better",
        figures={"gain": 0.5, "lower": 0.25, "drift": math.nan},
    )  # fmt: skip
    events: list[Event] = [started(KEY), lattice("fc"), blueprint()]
    for number, (source, goal) in enumerate(pairwise(UP)):
        events += [decided(number, source, goal), applied(number)]
    events += [trial(10, 0.125), trial(11, math.nan), gate, folded()]
    events += [
        decided(6, Stage.DORMANT, Stage.GERMINATED, seed=2, objective="next_layer"),
        applied(6),
        decided(7, Stage.GERMINATED, Stage.TRAINING, seed=2),
        TransitionLapsed(time=3.0, decision=7, step=12, reason="late"),
        decided(8, Stage.GERMINATED, Stage.TRAINING, seed=2),
        WeightsRecorded(time=3.0, step=12, tensors={"a": "da", "b": "db"}),
        CheckpointWritten(time=3.0, step=12, file="cf", weights="cw"),
        msgspec.structs.replace(ended(), outcome="failed", final_weights="fw", lattice="ll"),
    ]
    return events


STORY = [Record(index, event) for index, event in enumerate(story())]
SIZES = (3, 4, 1, 6, 2)
"""Events of the story in each segment but the last."""


def emptied(url: str) -> str:
    with psycopg.connect(url) as connection:
        connection.execute("DROP SCHEMA IF EXISTS esper_audit CASCADE")
    return url


def take(target: str, run: Path, trusted: PublicKey | None = None) -> Taken:
    reader = LogReader(run, trusted)
    with database(target) as connection:
        intake = Intake(connection, "run", reader, trusted is not None)
        return intake.take(reader.records())


def ask(target: str, query: str) -> list[tuple[Any, ...]]:
    with database(target, read_only=True) as connection:
        return connection.select(query)[1]


def dump(target: str) -> Dump:
    """Every table and view in a form that both databases share."""
    columns = {"runs": schema.RUNS, **schema.TABLES, **{view: {} for view in VIEWS}}
    held = {}
    with database(target) as connection:
        for name, kinds in columns.items():
            places = [place for place, kind in enumerate(kinds.values()) if "JSONB" in kind]
            rows = connection.execute(f"SELECT * FROM {name}")
            held[name] = sorted((_plain(row, places) for row in rows), key=repr)
    return held


def _plain(row: tuple[Any, ...], places: list[int]) -> tuple[Any, ...]:
    """SQLite has JSON, at ``places``, as text, and truth as 0 and 1."""
    values = [int(value) if isinstance(value, bool) else value for value in row]
    for place in places:
        value = values[place]
        read = json.loads(value) if isinstance(value, str) else value
        values[place] = json.dumps(_floats(read), sort_keys=True)
    return tuple(values)


def _floats(value: Any) -> Any:
    """PostgreSQL spells 1e16 as an integer."""
    if isinstance(value, dict):
        return {name: _floats(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_floats(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
