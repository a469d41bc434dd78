"""What must hold of a run that was killed, right after the kill and when it has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal

import msgspec

from benchmarks.kill_points import Told
from benchmarks.kill_run import Logged, Place, Result, Whole, read_log
from esper.log.repair import repair_replica
from esper.log.sources import source_for
from esper.log.workspace import Workspace
from esper.projections.lattice import fold_all
from esper.tolaria.logged import from_records
from esper.tolaria.observer import Silent
from esper.tolaria.trainer import rerun
from esper_events.chain import ChainVerifier
from esper_events.codec import encode_event
from esper_events.events import (
    ReplicaChanged,
    RunEnded,
    RunStarted,
    TransitionApplied,
    TransitionDecided,
)
from esper_events.framing import JOURNAL, read_frames
from esper_events.verify import verify_path

Promise = Literal["lost", "doubled", "not resumed", "other bits", "not whole"]
"""What a run broke: an acknowledged event is not in the log; an event stands there twice; the run
does not come to its end; its weights, or its lattice, are not what its log gives again; log,
stream and proofs do not agree, or a change was applied before its acknowledgement."""


class Violation(msgspec.Struct, frozen=True):
    """What does not hold."""

    promise: Promise
    what: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.what}"


def after_kill(told: Told, logged: Logged) -> Iterator[Violation]:
    """Of a run that was killed just now, or has ended."""
    digests, events = logged.digests, logged.events
    for index in told.changed:
        yield Violation("lost", f"event {index} was acknowledged with two contents")
    for index, hashed in told.acknowledged.items():
        if index >= len(digests):
            yield Violation("lost", f"acknowledged event {index} is not there")
        elif digests[index] != hashed:
            yield Violation("lost", f"acknowledged event {index} is another now")
    decided: dict[int, int] = {}
    for index, event in enumerate(events):
        if isinstance(event, TransitionDecided):
            decided[event.decision] = index
        elif isinstance(event, TransitionApplied):
            if event.decision not in decided:
                yield Violation("not whole", f"change {event.decision} was applied undecided")
            elif decided[event.decision] not in told.acknowledged:
                yield Violation("not whole", f"change {event.decision} was applied unacknowledged")


def after_end(place: Place, whole: Whole, told: Told) -> Iterator[Violation]:
    """Of a run that has ended. Trains it again: for a process that trains nothing else."""
    logged = read_log(place.run)
    yield from after_kill(told, logged)
    yield from _doubled(logged)
    yield from _proofs(place)
    yield from _stream(place, logged)
    ended = logged.events[-1]
    if not isinstance(ended, RunEnded):
        yield Violation("not resumed", "the log has no end")
        return
    if fold_all(list(logged.records[:-1])).digest() != ended.lattice:
        yield Violation("other bits", "the replayed lattice is not the one of the run's end")
    if place.result.exists():
        result = msgspec.json.decode(place.result.read_bytes(), type=Result)
        if result.grown.log_failure:
            yield Violation("not whole", f"its log failed: {result.grown.log_failure}")
        if result.grown.final_weights != ended.final_weights:
            yield Violation("other bits", "the weights of the process are not those of its log")
    report = rerun(from_records(logged.records), to=None, directory=place.base, observer=Silent())
    if not report.identical or report.final_weights != ended.final_weights:
        yield Violation("other bits", f"a re-run of its log differs: {report.difference}")
    yield from _other_than_whole(whole, logged, ended)


def _other_than_whole(whole: Whole, logged: Logged, ended: RunEnded) -> Iterator[Violation]:
    """Where decisions waited for the log, the run must be the one that nobody killed."""
    if not whole.mode.sync or logged.unanswered:
        return
    if ended.final_weights != whole.final_weights:
        yield Violation("other bits", "its weights are not those of the run that nobody killed")
    if logged.history != whole.history:
        yield Violation("doubled", "its events are not those of the run that nobody killed")


def _doubled(logged: Logged) -> Iterator[Violation]:
    """No event stands there twice, were it with another time; a copy may fall behind again."""
    events = [
        event if isinstance(event, ReplicaChanged) else msgspec.structs.replace(event, time=0.0)
        for event in logged.events
    ]
    for data, times in Counter(map(encode_event, events)).items():
        if times > 1:
            yield Violation("doubled", f"{times} times {data[:80]!r}")


def _proofs(place: Place) -> Iterator[Violation]:
    report = verify_path(place.run)
    if not report.ok:
        yield Violation("not whole", report.message)
    elif not report.ended:
        yield Violation("not resumed", "the log has no end")


def _stream(place: Place, logged: Logged) -> Iterator[Violation]:
    """The server's copy: what a killed server did not get is sent, then both are one."""
    repaired = repair_replica(place.run, Workspace(place.workspace))
    if _sent(place, logged) != _written(place):
        yield Violation("not whole", f"the stream is not the journal, {repaired.sent} were sent")


def on_server(place: Place, told: Told) -> list[Violation]:
    """Of a run that was killed, where the server's acknowledgement counts: the server has all that
    was acknowledged. Starts the server where it is not there; for a process of its own."""
    logged = read_log(place.run)
    held, written = _sent(place, logged), _written(place)
    if held != written[: len(held)]:
        return [Violation("not whole", "the stream is not the beginning of the journal")]
    verifier = ChainVerifier()
    events = sum(len(verifier.accept(segment)) for segment in held)
    lost = [index for index in told.acknowledged if index >= events]
    return [Violation("lost", f"acknowledged event {index} is not on the server") for index in lost]


def _sent(place: Place, logged: Logged) -> list[bytes]:
    started = logged.events[0]
    assert isinstance(started, RunStarted)
    source = source_for(started.run, Workspace(place.workspace), None)
    try:
        store = source.connect()
        try:
            return list(store.read())
        finally:
            store.close()
    finally:
        source.close()


def _written(place: Place) -> list[bytes]:
    """The segments of the journal, but for a torn one at its end."""
    with (place.run / JOURNAL).open("rb") as file:
        return [segment for _, segment in read_frames(file, growing=True)]
