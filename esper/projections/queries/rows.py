"""The rows that a record adds to an audit database."""

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
    HostRolledBack,
    Record,
    RollbackDecided,
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

Value = str | int | float | bool | None


class RowError(Exception):
    """An event that has no row."""


class Row(NamedTuple):
    """A row of ``table``: its values in order of the columns."""

    table: str
    values: tuple[Value, ...]


def rows_version() -> str:
    """Digest, in hex, of the sources that decide what rows a record adds."""
    source = files(__package__).joinpath("rows.py").read_bytes()
    return hashlib.sha256(code_version().encode() + source).hexdigest()


def rows_of(log: str, record: Record, segment: int, actor: str) -> Iterator[Row]:
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
    """JSON in PostgreSQL holds no NUL and no negative zero."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, float):
        return value + 0.0
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
        case RollbackDecided() as event:
            yield "checkpoint file", "", event.file
        case HostRolledBack() as event:
            yield "checkpoint weights", "", event.weights
        case RunEnded() as event:
            yield "final weights", "", event.final_weights
            yield "lattice", "", event.lattice
