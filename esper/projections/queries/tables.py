"""What stands in an audit database: its tables and views, and the rows that a record adds.

Tables only grow: a decision and what became of it are two rows, which the view ``decisions``
joins. The one row that changes is the run's own in ``runs``, which is the position as well. Only
what SQLite and PostgreSQL spell alike is used. The schema is told in docs/audit.md.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec

from esper.projections.canonical import as_json
from esper.projections.snapshots import code_version
from esper_events.events import (
    BlueprintRegistered,
    CheckpointWritten,
    Figures,
    GateMeasured,
    Record,
    RunEnded,
    RunStarted,
    SeedFolded,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
    TrialMeasured,
    WeightsRecorded,
    objective_of,
)
from esper_events.stages import Stage

SCHEMA = 1
"""Version of the tables and views; a database of another is refused."""

Value = str | int | float | bool | None

RUNS = {
    "log": "TEXT PRIMARY KEY",
    "run": "TEXT",
    "started": "DOUBLE PRECISION",
    "version": "TEXT",
    "seed": "BIGINT",
    "host_weights": "TEXT",
    "config": "TEXT",
    "platform": "JSONB",
    "source": "TEXT NOT NULL",
    "verified_by": "TEXT NOT NULL",
    "key_pinned": "BOOLEAN NOT NULL",
    "events": "BIGINT NOT NULL",
    "segments": "BIGINT NOT NULL",
    "head": "TEXT NOT NULL",
    "checkpoint": "BIGINT",
    "ended": "BOOLEAN NOT NULL",
    "outcome": "TEXT",
    "reason": "TEXT",
    "last_step": "BIGINT",
    "final_weights": "TEXT",
    "lattice": "TEXT",
    "lattice_agrees": "BOOLEAN",
    "figures": "JSONB",
    "steps_lost": "BIGINT NOT NULL",
    "audit": "TEXT NOT NULL",
    "code": "TEXT NOT NULL",
}
"""Columns of ``runs`` with their types."""

_PLACE = {"log": "TEXT NOT NULL", "event": "BIGINT NOT NULL"}

TABLES = {
    "events": {
        **_PLACE,
        "segment": "BIGINT NOT NULL",
        "kind": "TEXT NOT NULL",
        "time": "DOUBLE PRECISION",
        "step": "BIGINT",
        "actor": "TEXT NOT NULL",
        "body": "JSONB NOT NULL",
    },
    "blueprints": {**_PLACE, "blueprint": "TEXT NOT NULL", "name": "TEXT NOT NULL"},
    "decided": {
        **_PLACE,
        "decision": "BIGINT NOT NULL",
        "step": "BIGINT NOT NULL",
        "at_step": "BIGINT NOT NULL",
        "seed": "BIGINT NOT NULL",
        "slot": "TEXT NOT NULL",
        "blueprint": "TEXT NOT NULL",
        "source": "TEXT NOT NULL",
        "target": "TEXT NOT NULL",
        "reason": "TEXT NOT NULL",
        "removal": "TEXT NOT NULL",
        "objective": "TEXT",
    },
    "settled": {
        **_PLACE,
        "decision": "BIGINT NOT NULL",
        "step": "BIGINT NOT NULL",
        "outcome": "TEXT NOT NULL",
        "reason": "TEXT",
        "steps_lost": "BIGINT",
        "seed_weights": "TEXT",
    },
    "trials": {
        **_PLACE,
        "step": "BIGINT NOT NULL",
        "seed": "BIGINT NOT NULL",
        "gain": "DOUBLE PRECISION",
        "error": "DOUBLE PRECISION",
        "shadow_steps": "DOUBLE PRECISION",
    },
    "gates": {
        **_PLACE,
        "step": "BIGINT NOT NULL",
        "seed": "BIGINT NOT NULL",
        "gate": "TEXT NOT NULL",
        "passed": "BOOLEAN NOT NULL",
        "reason": "TEXT NOT NULL",
        "gain": "DOUBLE PRECISION",
        "lower": "DOUBLE PRECISION",
        "figures": "JSONB NOT NULL",
    },
    "digests": {
        **_PLACE,
        "step": "BIGINT",
        "what": "TEXT NOT NULL",
        "name": "TEXT NOT NULL",
        "digest": "TEXT NOT NULL",
    },
}
"""Columns of every other table with their types, by its name."""

_KEYS = {"decided": "decision", "settled": "decision"}
_KEYLESS = frozenset({"digests"})
"""An event may tell of many, by names that need not differ."""

_VIEWS = (
    """CREATE VIEW decisions AS
    SELECT d.log, d.decision, d.seed, d.slot, d.blueprint, d.source, d.target, d.event, d.step,
        d.at_step, d.reason, d.removal, d.objective, COALESCE(s.outcome, 'open') AS outcome,
        s.event AS settled_event, s.step AS settled_step, s.reason AS settled_reason,
        s.steps_lost, s.seed_weights
    FROM decided d LEFT JOIN settled s ON s.log = d.log AND s.decision = d.decision""",
    """CREATE VIEW stages AS
    SELECT log, seed, slot, blueprint, target AS stage, source AS previous, settled_event AS event,
        settled_step AS step, decision, reason, steps_lost, seed_weights
    FROM decisions WHERE outcome = 'applied'""",
    """CREATE VIEW seeds AS
    SELECT d.log, d.seed, d.slot, d.blueprint,
        (SELECT b.name FROM blueprints b WHERE b.log = d.log AND b.blueprint = d.blueprint
            ORDER BY b.event DESC LIMIT 1) AS name,
        (SELECT o.objective FROM decided o WHERE o.log = d.log AND o.seed = d.seed
            AND o.objective IS NOT NULL ORDER BY o.event DESC LIMIT 1) AS objective,
        COALESCE(s.stage, 'dormant') AS stage, s.event, s.step, s.seed_weights
    FROM (SELECT DISTINCT log, seed, slot, blueprint FROM decided) d
    LEFT JOIN stages s ON s.log = d.log AND s.seed = d.seed AND s.event =
        (SELECT MAX(t.event) FROM stages t WHERE t.log = d.log AND t.seed = d.seed)""",
)


class RowError(Exception):
    """An event that has no row."""


class Row(NamedTuple):
    """A row of ``table``: its values in order of the columns."""

    table: str
    values: tuple[Value, ...]


def definitions() -> Iterator[str]:
    """The statements that make an empty database."""
    yield "CREATE TABLE esper_audit (schema_version BIGINT NOT NULL)"
    yield f"INSERT INTO esper_audit VALUES ({SCHEMA})"
    yield f"CREATE TABLE runs ({_columns(RUNS)})"
    for table, columns in TABLES.items():
        key = f", PRIMARY KEY (log, {_KEYS.get(table, 'event')})"
        key = "" if table in _KEYLESS else key
        yield f"CREATE TABLE {table} ({_columns(columns)}{key})"
    yield "CREATE INDEX decided_seed ON decided (log, seed)"
    yield "CREATE INDEX digests_event ON digests (log, event)"
    yield from _VIEWS


def _columns(columns: dict[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in columns.items())


def tables_version() -> str:
    """Digest, in hex, of the sources that decide what rows a record adds."""
    source = files(__package__).joinpath("tables.py").read_bytes()
    return hashlib.sha256(code_version().encode() + source).hexdigest()


def rows(log: str, record: Record, segment: int, actor: str) -> Iterator[Row]:
    """The rows that ``record`` adds, which stands in the ``segment`` that ``actor`` signed.

    Raises:
        RowError: a number in it is more than a database holds.
    """
    for table, *values in _rows(record, segment, actor):
        try:
            yield Row(table, (log, record.index, *map(plain, values)))
        except RowError as error:
            raise RowError(f"event {record.index}: {error}") from error


def plain(value: Value) -> Value:
    """``value`` as both databases keep it: text without NUL, what is no number as NULL.

    Raises:
        RowError: an integer of more than 64 bits.
    """
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise RowError(f"got {value}, which is more than a database holds in a number")
    return value


def as_text(value: object) -> str:
    """``value`` as JSON text, figures that are no numbers as the texts nan, inf and -inf."""
    return json.dumps(_clean(as_json(value)), ensure_ascii=False)


def _clean(value: Any) -> Any:
    """JSON in PostgreSQL holds no NUL."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {_clean(name): _clean(item) for name, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list) else value


def _rows(record: Record, segment: int, actor: str) -> Iterator[tuple[Any, ...]]:
    event = record.event
    kind, step = str(type(event).__struct_config__.tag), getattr(event, "step", None)
    body = msgspec.to_builtins(event)
    del body["kind"], body["time"]
    yield "events", segment, kind, event.time, step, actor, as_text(body)
    match event:
        case BlueprintRegistered():
            yield "blueprints", event.blueprint, event.name
        case TransitionDecided():
            yield _decided(event)
        case TransitionApplied():
            lost, weights = event.steps_lost, event.seed_weights
            yield "settled", event.decision, event.step, "applied", None, lost, weights
        case TransitionLapsed():
            yield "settled", event.decision, event.step, "lapsed", event.reason, None, None
        case TrialMeasured(seed=seed, figures=seen):
            shown = _figures(seen, "gain", "error", "shadow_steps")
            yield "trials", event.step, seed, *shown
        case GateMeasured(seed=seed, figures=seen):
            said = (event.gate.value, event.passed, event.reason)
            yield "gates", event.step, seed, *said, *_figures(seen, "gain", "lower"), as_text(seen)
    for what, name, digest in _digests(record):
        if digest:
            yield "digests", step, what, name, digest


def _figures(figures: Figures, *names: str) -> tuple[float | None, ...]:
    return tuple(figures.get(name) for name in names)


def _decided(event: TransitionDecided) -> tuple[Any, ...]:
    begins = event.target is Stage.GERMINATED
    return (
        "decided",
        event.decision,
        event.step,
        event.at_step,
        event.seed,
        event.slot,
        event.blueprint,
        event.source.value,
        event.target.value,
        event.reason,
        event.removal,
        objective_of(event.objective) if begins else None,
    )


def _digests(record: Record) -> Iterator[tuple[str, str, str]]:
    """What each digest in the record is of: the kind of thing, its name, and the digest."""
    match record.event:
        case RunStarted() as event:
            yield "host at the start", "", event.host_weights
            yield "config", "", hashlib.sha256(event.config.encode()).hexdigest()
        case BlueprintRegistered() as event:
            yield "blueprint", event.name, event.blueprint
        case TransitionApplied() as event:
            yield "seed", f"decision {event.decision}", event.seed_weights
        case SeedFolded() as event:
            yield "module before", event.module, event.before
            yield "module after", event.module, event.after
        case WeightsRecorded() as event:
            for name, digest in event.tensors.items():
                yield "tensor", name, digest
        case CheckpointWritten() as event:
            yield "checkpoint file", "", event.file
            yield "checkpoint weights", "", event.weights
        case RunEnded() as event:
            yield "final weights", "", event.final_weights
            yield "lattice", "", event.lattice
