"""Where two histories part, and how each went on.

Two runs of one config differ in much that is no history: when they ran, under which key and name,
how often the copy of their log lagged. So only what happened to the model is compared: every event
but those that tell of the log and of files (`INCIDENTAL`), each without its time, bit for bit. How
the runs began (seed, config, platform) is told apart from that.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import msgspec

from esper.projections.canonical import as_json
from esper.projections.lattice import LatticeState, fold_all
from esper_events.codec import encode_event
from esper_events.events import (
    OF_WRITERS,
    BlueprintRegistered,
    CheckpointWritten,
    ControllerConsulted,
    Event,
    Figures,
    Record,
    ReplicaChanged,
    RunEnded,
    RunStarted,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
)

INCIDENTAL = (CheckpointWritten, ReplicaChanged, ControllerConsulted, *OF_WRITERS)
"""Kinds whose place in a log, and whose being there, hang on the time that disks and servers take;
and the one that tells why, not what: another controller may decide the same."""

_NAMES = ("run", "trainer_key", "certificate", "time")
_WHY = ("time", "consulted")


@dataclass(frozen=True)
class History:
    """The records of one run from its genesis on, and the lattice that they fold to.

    Raises:
        ProjectionError: a record says what cannot have happened.
    """

    records: Sequence[Record]
    lattice: LatticeState = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lattice", fold_all(self.records))


class FieldDifference(msgspec.Struct, frozen=True):
    """One field in which two events differ; None where an event does not have it."""

    name: str
    a: Any
    b: Any


class Aftermath(msgspec.Struct, frozen=True):
    """How one history went on from where it parts: its events from there, what became of the
    decisions taken from there, seeds that entered each stage; and how it stands at its end."""

    events: int
    decided: int
    applied: int
    lapsed: int
    entered: dict[str, int]
    kept: tuple[str, ...]
    lattice: str
    outcome: str
    step: int | None
    final_weights: str
    figures: Figures


class Difference(msgspec.Struct, frozen=True):
    """What `compare` found; the first of a pair is of the first history.

    ``shared`` counts the events that are the same before the histories part, ``parted`` are the
    first that are not, None in place of one where its history has no more; ``fields`` tells in
    what they differ, if they are of one kind. ``last_same`` and ``first_other`` are the steps of
    checkpoints in both histories between which the weights part.
    """

    same: bool
    beginnings: tuple[FieldDifference, ...]
    shared: int
    parted: tuple[Record | None, Record | None] | None
    fields: tuple[FieldDifference, ...]
    after: tuple[Aftermath, Aftermath]
    last_same: int | None
    first_other: int | None


def compare(a: History, b: History, *, exact: bool = False) -> Difference:
    """The first difference of two histories.

    With ``exact`` every field of every event counts, also times, keys, names, config and platform.
    """
    key = encode_event if exact else _timeless
    pairs = zip_longest(_told(a, exact), _told(b, exact))
    shared, parted = _first_other(pairs, key)
    beginnings = () if exact else _beginnings(a.records[0].event, b.records[0].event)
    weights = any(difference.name == "host_weights" for difference in beginnings)
    last_same, first_other = _weights_part(a, b)
    return Difference(
        same=parted is None and first_other is None and not weights,
        beginnings=beginnings,
        shared=shared,
        parted=parted,
        fields=_fields_of(parted, exact),
        after=(_aftermath(a, parted and parted[0]), _aftermath(b, parted and parted[1])),
        last_same=last_same,
        first_other=first_other,
    )


Pair = tuple[Record | None, Record | None]


def _told(history: History, exact: bool) -> Iterator[Record]:
    return (r for r in history.records if exact or not isinstance(r.event, INCIDENTAL))


def _timeless(event: Event) -> bytes:
    if isinstance(event, RunStarted):  # Told among the beginnings.
        return b""
    if isinstance(event, TransitionDecided):
        event = msgspec.structs.replace(event, consulted=msgspec.UNSET)
    return encode_event(msgspec.structs.replace(event, time=0.0))


def _first_other(pairs: Iterator[Pair], key: Callable[[Event], bytes]) -> tuple[int, Pair | None]:
    shared = 0
    for one, other in pairs:
        if one is None or other is None or key(one.event) != key(other.event):
            return shared, (one, other)
        shared += 1
    return shared, None


def _beginnings(a: Event, b: Event) -> tuple[FieldDifference, ...]:
    sides = []
    for event in (a, b):
        fields = msgspec.to_builtins(event)
        config = _parsed(fields.pop("config", ""))
        sides.append({name: value for name, value in fields.items() if name not in _NAMES})
        sides[-1]["config"] = config
    return _differences(*sides)


def _parsed(config: str) -> Any:
    """The settings in ``config``, if it is TOML or JSON; else its text."""
    for parse in (tomllib.loads, msgspec.json.decode):
        try:
            return parse(config)
        except (ValueError, msgspec.DecodeError, RecursionError):
            continue
    return config


def _fields_of(parted: Pair | None, exact: bool) -> tuple[FieldDifference, ...]:
    if parted is None or parted[0] is None or parted[1] is None:
        return ()
    one, other = parted[0].event, parted[1].event
    if type(one) is not type(other):
        return ()
    found = _differences(msgspec.to_builtins(one), msgspec.to_builtins(other))
    return tuple(difference for difference in found if exact or difference.name not in _WHY)


def _differences(a: object, b: object) -> tuple[FieldDifference, ...]:
    left, right = dict(_flat("", a)), dict(_flat("", b))
    names = [*left, *(name for name in right if name not in left)]
    return tuple(
        FieldDifference(name, as_json(left.get(name)), as_json(right.get(name)))
        for name in names
        if _bits(left.get(name)) != _bits(right.get(name))
    )


def _flat(name: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), item)
    elif isinstance(value, list | tuple) and value:
        for place, item in enumerate(value):
            yield from _flat(f"{name}[{place}]", item)
    else:
        yield name, value


def _bits(value: object) -> bytes:
    """Equal only for values of the same bits: a NaN equals itself, 0.0 is not -0.0."""
    return msgspec.msgpack.encode(value, enc_hook=str)


def _aftermath(history: History, parted: Record | None) -> Aftermath:
    records, state = history.records, history.lattice
    start = len(records) if parted is None else parted.index
    rest = [record.event for record in records[start:]]
    decided = {e.decision: e for e in rest if isinstance(e, TransitionDecided)}
    applied = [e for e in rest if isinstance(e, TransitionApplied) and e.decision in decided]
    lapsed = [e for e in rest if isinstance(e, TransitionLapsed) and e.decision in decided]
    ended = records[-1].event if isinstance(records[-1].event, RunEnded) else None
    return Aftermath(
        events=len(rest),
        decided=len(decided),
        applied=len(applied),
        lapsed=len(lapsed),
        entered=dict(Counter(decided[event.decision].target.value for event in applied)),
        kept=_kept(history),
        lattice=state.digest(),
        outcome=ended.outcome if ended else "",
        step=ended.step if ended else None,
        final_weights=ended.final_weights if ended else "",
        figures=ended.figures if ended else {},
    )


def _kept(history: History) -> tuple[str, ...]:
    events = (record.event for record in history.records)
    names = {e.blueprint: e.name for e in events if isinstance(e, BlueprintRegistered)}
    fossils = history.lattice.fossils()
    return tuple(f"seed {n}, {names.get(s.blueprint, '')} in {s.slot}" for n, s in fossils)


def _weights_part(a: History, b: History) -> tuple[int | None, int | None]:
    """The first step of which both histories hold a checkpoint, of other weights, and the one
    before it."""
    one, other = _checkpoints(a), _checkpoints(b)
    last = None
    for step in sorted(one.keys() & other.keys()):
        if one[step] != other[step]:
            return last, step
        last = step
    return last, None


def _checkpoints(history: History) -> dict[int, str]:
    """Digests of the weights in the run's checkpoints, by step."""
    events = (record.event for record in history.records)
    return {e.step: e.weights for e in events if isinstance(e, CheckpointWritten)}
