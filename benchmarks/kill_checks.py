"""What must hold of a run that was killed, right after the kill and when it has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import msgspec

from benchmarks.kill_place import Logged, Place, read_log, segments
from benchmarks.kill_points import Told, digest
from benchmarks.kill_run import Mode, Result, Whole
from esper.log.errors import FencedError, JournalError, RunEndedError
from esper.log.quarantine import QUARANTINE
from esper.log.repair import repair_replica
from esper.log.run import resume_run_log
from esper.log.sources import source_for
from esper.log.workspace import Workspace
from esper.projections.lattice import fold_all
from esper.tolaria.logged import from_records
from esper.tolaria.observer import Silent
from esper.tolaria.trainer import rerun
from esper_events.chain import ChainVerifier
from esper_events.codec import encode_event
from esper_events.events import (
    Event,
    ReplicaChanged,
    RunEnded,
    TransitionApplied,
    TransitionDecided,
)
from esper_events.framing import read_frames
from esper_events.segment import open_segment
from esper_events.verify import verify_path

Promise = Literal["lost", "doubled", "not resumed", "other bits", "not whole"]
"""What a run broke: an acknowledged event is not in the log; an event stands there twice; the run
does not come to its end; its weights, or its lattice, are not what its log gives again; log,
stream and proofs do not agree, a change was applied before its acknowledgement, or a process or a
history stayed that should have made way."""


class Violation(msgspec.Struct, frozen=True):
    """What does not hold."""

    promise: Promise
    what: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.what}"


def kept(told: Told, events: Sequence[Event], where: str) -> Iterator[Violation]:
    """Whether all that was ever acknowledged stands in its place among ``events``."""
    digests = [digest(event) for event in events]
    for index in told.changed:
        yield Violation("lost", f"event {index} was acknowledged with two contents")
    for index, hashed in told.acknowledged.items():
        if index >= len(digests):
            yield Violation("lost", f"acknowledged event {index} is not in {where}")
        elif digests[index] != hashed:
            yield Violation("lost", f"acknowledged event {index} is another in {where}")


def in_order(told: Told, logged: Logged) -> Iterator[Violation]:
    """Whether every change that the journal tells of was acknowledged before it was applied."""
    decided: dict[int, int] = {}
    for index, event in enumerate(logged.events):
        if isinstance(event, TransitionDecided):
            decided[event.decision] = index
        elif isinstance(event, TransitionApplied):
            if event.decision not in decided:
                yield Violation("not whole", f"change {event.decision} was applied undecided")
            elif decided[event.decision] not in told.acknowledged:
                yield Violation("not whole", f"change {event.decision} was applied unacknowledged")


def on_server(place: Place, told: Told) -> list[Violation]:
    """Of a run that was killed, where the server's acknowledgement counts: the server has all that
    was acknowledged. Starts the server where it is not there; for a process of its own."""
    verifier = ChainVerifier()
    records = [record for segment in stream(place) for record in verifier.accept(segment)]
    return list(kept(told, [record.event for record in records], "the stream"))


def after_end(place: Place, mode: Mode, whole: Whole, told: Told) -> Iterator[Violation]:
    """Of a run that has ended. Trains it again: for a process that trains nothing else."""
    logged = read_log(place.run)
    yield from kept(told, logged.events, "the journal")
    yield from in_order(told, logged)
    yield from _doubled(logged)
    yield from _proofs(place)
    yield from _copied(place)
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
    # Where decisions waited for the log, it must be the run that nobody killed.
    if mode.sync and not logged.unanswered:
        yield from _other_than_whole(whole, logged, ended)


def _other_than_whole(whole: Whole, logged: Logged, ended: RunEnded) -> Iterator[Violation]:
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


def _copied(place: Place) -> Iterator[Violation]:
    """The server's copy: what a killed server did not get is sent, then both are one."""
    repaired = repair_replica(place.run, Workspace(place.workspace))
    if stream(place) != segments(place.run):
        yield Violation("not whole", f"the stream is not the journal after repair: {repaired}")


def stream(place: Place) -> list[bytes]:
    """The segments of the run that the server holds; starts a thread, and the server."""
    log = open_segment(segments(place.run)[0]).log
    source = source_for(log, Workspace(place.workspace), None)
    try:
        store = source.connect()
        try:
            return list(store.read())
        finally:
            store.close()
    finally:
        source.close()


def left_elsewhere(place: Place, history: Sequence[bytes]) -> list[Violation]:
    """Of a machine that another has taken the run from: it must not go on with it, and keep nothing
    in its journal that is not in ``history``. For a process of its own."""
    try:
        resume_run_log(place.run, workspace=Workspace(place.workspace), ack="jetstream").close()
        return [Violation("not whole", f"machine {place.machine} could go on with the run")]
    except (FencedError, RunEndedError, JournalError):
        # The last of them: killed when it had the other's history, and had not begun its epoch.
        after = segments(place.run)
    if after != history[: len(after)]:
        return [Violation("not whole", f"machine {place.machine} holds another history")]
    return []


def thrown_away(
    place: Place, held: Collection[bytes], history: Sequence[bytes]
) -> Iterator[Violation]:
    """Segments that the journal at ``place`` once ``held``, and that are neither in ``history`` nor
    set aside."""
    aside = {
        segment
        for path in (place.run / QUARANTINE).glob("*.segments")
        for _, segment in read_frames(path.read_bytes())
    }
    lost = set(held) - aside.union(history)
    if lost:
        yield Violation("lost", f"machine {place.machine} threw {len(lost)} segments away")
