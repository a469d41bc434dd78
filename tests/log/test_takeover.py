"""Taking a run over: what the lease, the stream and the journal at hand let it come to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from esper.log import takeover
from esper.log.copies import ObjectCopies
from esper.log.endpoint import Endpoint
from esper.log.errors import (
    ConflictError,
    FencedError,
    LogError,
    RunEndedError,
    StoreUnavailableError,
)
from esper.log.event_log import EventLog
from esper.log.jetstream import JetStreamStore
from esper.log.objects import digest_of, path_of, read_object
from esper.log.takeover import Lease, lease_run_log
from esper_events.codec import encode_event
from esper_events.events import ControllerConsulted, Event, ReplicaChanged, RunTakenOver
from esper_events.framing import JOURNAL, frame, read_frames
from esper_events.reader import read_checkpoint
from esper_events.segment import open_segment, seal, segment_hash
from esper_events.verify import verify_path
from support.log_runs import UserServer, ended, plateau, started, wait_until
from support.machines import Machine


class Pair:
    """Two machines of one root, a server, and a run of which the first has begun epoch 0."""

    def __init__(self, directory: Path, log_id: str, server: UserServer) -> None:
        for name in "ab":
            (directory / name).mkdir()
        self.url, self.log_id = server.url, log_id
        self.here = Machine(directory / "a")
        self.there = Machine(directory / "b", self.here)

    def begin(self, *events: Event) -> EventLog:
        log = self.take(self.here, 0)
        told = msgspec.structs.replace(
            started(self.here.workspace.key(), self.log_id),
            certificate=log.credentials.certificate,
            next_key=log.credentials.next_key,
        )
        for event in (told, *events):
            assert log.append(event).wait(10)
        return log

    def take(self, machine: Machine, epoch: int) -> EventLog:
        return machine.take(epoch, self.url, self.log_id)

    def stream(self) -> JetStreamStore:
        return JetStreamStore(Endpoint(self.url), self.log_id)


@pytest.fixture
def pair(tmp_path: Path, shared_server: UserServer, fresh_log: Callable[[], str]) -> Pair:
    return Pair(tmp_path, fresh_log(), shared_server)


def kinds(log: EventLog) -> list[str]:
    return [type(record.event).__name__ for record in log.records()]


def test_who_takes_a_run_over_has_it_and_the_one_before_is_told(pair: Pair) -> None:
    before = pair.begin(plateau(1))
    after = pair.take(pair.there, 1)
    assert kinds(after) == ["RunStarted", "PlateauDetected", "RunTakenOver"]
    late = before.append(plateau(2))
    assert not late.wait(10)
    assert isinstance(late.error, FencedError)
    assert (late.error.epoch, late.error.holder, late.error.index) == (1, "b", 2)
    assert before.fenced is late.error
    assert before.append(plateau(3)).error is late.error
    assert len(before.records()) == 2
    before.close()
    assert after.append(ended(4)).wait(10)
    after.close()
    report = verify_path(pair.there.run_dir)
    assert report.ok
    assert report.ended
    signed = read_checkpoint(pair.here.run_dir)  # Of nothing that was never acknowledged.
    assert signed is None or signed.checkpoint.size <= 2


def test_a_run_comes_back_to_a_machine_that_had_it(pair: Pair) -> None:
    first = pair.begin(plateau(1))
    second = pair.take(pair.there, 1)
    first.append(plateau(2)).wait(10)
    first.close()
    assert second.append(plateau(3)).wait(10)
    third = pair.take(pair.here, 2)
    assert [r.event.epoch for r in third.records() if isinstance(r.event, RunTakenOver)] == [1, 2]
    assert pair.here.quarantine == ["epoch-0-event-2.segments"]
    aside = pair.here.run_dir / "quarantine" / pair.here.quarantine[0]
    _, suffix = next(read_frames(aside.read_bytes()))
    assert (open_segment(suffix).epoch, open_segment(suffix).first_index) == (0, 2)
    second.append(plateau(4)).wait(10)
    assert second.fenced is not None
    assert second.fenced.holder == "a"
    third.close()
    second.close()


def test_a_late_segment_of_the_epoch_before_does_not_cost_the_epoch(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It arrives when the stream has been read, and before the epoch begins there."""
    before = pair.begin(plateau(1))
    with closing(pair.stream()) as stream:
        held = list(stream.read())
        late = seal(
            [encode_event(plateau(2))],
            log=pair.log_id,
            first_index=2,
            previous=segment_hash(held[-1]),
            key=pair.here.workspace.key(),
        )
        set_aside = takeover.set_aside
        arrivals = [late]

        def read_then_overtaken(*arguments: object) -> object:
            while arrivals:
                stream.append(2, arrivals.pop())
            return set_aside(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(takeover, "set_aside", read_then_overtaken)
        after = pair.take(pair.there, 1)
    assert kinds(after) == ["RunStarted", "PlateauDetected", "PlateauDetected", "RunTakenOver"]
    assert pair.there.quarantine == ["epoch-1-event-2.segments"]
    after.close()
    before.close()


def test_a_killed_process_goes_on_in_its_epoch_with_what_it_had_not_shipped(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.begin(plateau(1)).close()
    first = pair.take(pair.there, 1)
    first.append(plateau(2)).wait(10)
    first.close()
    journal = (pair.there.run_dir / JOURNAL).read_bytes()
    with closing(pair.stream()) as stream:
        count, head = stream.count, list(stream.read())[-1]
    unshipped = seal(
        [encode_event(plateau(3))],
        log=pair.log_id,
        first_index=4,
        previous=segment_hash(head),
        key=pair.there.workspace.key(),
        epoch=1,
    )
    (pair.there.run_dir / JOURNAL).write_bytes(
        journal + len(unshipped).to_bytes(4, "big") + unshipped
    )
    again = pair.take(pair.there, 1)
    assert len(again.records()) == 5
    with closing(pair.stream()) as stream:
        assert list(stream.read(count)) == [unshipped]
    assert pair.there.quarantine == []
    again.close()
    (pair.there.run_dir / JOURNAL).write_bytes(journal[:-7])
    whole = pair.take(pair.there, 1)  # Its own end, lost here, comes back from the stream.
    assert len(whole.records()) == 5
    whole.close()


def test_a_lease_outlasts_an_exchange_of_keys(pair: Pair) -> None:
    pair.begin(plateau(1)).close()
    pair.here.workspace.keys.rotate()
    again = pair.take(pair.here, 0)
    assert kinds(again) == ["RunStarted", "PlateauDetected", "KeyRotated"]
    assert again.append(plateau(2)).wait(10)
    again.close()
    (pair.here.run_dir / JOURNAL).write_bytes((pair.here.run_dir / JOURNAL).read_bytes()[:-7])
    pair.here.workspace.keys.certify()
    pair.here.workspace.keys.rotate()
    whole = pair.take(pair.here, 0)
    assert kinds(whole)[3:] == ["PlateauDetected", "KeyRotated"]
    whole.close()
    pair.here.workspace.keys.certify()
    pair.here.workspace.keys.rotate()
    later = pair.take(pair.here, 1)
    assert kinds(later)[5:] == ["RunTakenOver"]
    later.close()
    report = verify_path(pair.here.run_dir, pair.here.workspace.keys.public("root"))
    assert report.ok, report.message
    assert report.key == pair.here.workspace.key().public.fingerprint


def test_an_ended_run_is_not_taken_over(pair: Pair) -> None:
    pair.begin(ended(3)).close()
    with pytest.raises(RunEndedError, match="nothing to take over") as over:
        pair.take(pair.there, 1)
    assert over.value.ended == ended(3)
    assert not (pair.there.run_dir / JOURNAL).read_bytes()


def test_a_run_of_which_nothing_arrived_is_begun_in_the_later_epoch(pair: Pair) -> None:
    log = pair.take(pair.there, 3)
    assert log.records() == []
    told = msgspec.structs.replace(
        started(pair.there.workspace.key(), pair.log_id), certificate=log.credentials.certificate
    )
    assert log.append(told).wait(10)
    with closing(pair.stream()) as stream:
        assert [open_segment(s).epoch for s in stream.read()] == [3]
    log.close()


def test_what_cannot_be_taken_over_says_why(pair: Pair, tmp_path: Path) -> None:
    pair.begin(plateau(1)).close()
    log = pair.take(pair.there, 2)
    head = log.flush(10) and list(log._journal.read())[-1]
    assert log.append(plateau(2)).wait(10)
    log.close()
    with pytest.raises(FencedError, match="is in lease epoch 2, later than 1"):
        pair.take(pair.here, 1)
    with pytest.raises(LogError, match="was written under another key than that of the workspace"):
        pair.take(pair.here, 2)
    with pytest.raises(LogError, match=f"holds the journal of run {pair.log_id}, wanted that of"):
        pair.here.take(0, pair.url, "another")
    stranger = Machine(tmp_path / "c")
    with pytest.raises(LogError, match="esper keys certify"):
        pair.take(stranger, 3)
    other = seal(
        [encode_event(plateau(9))],
        log=pair.log_id,
        first_index=3,
        previous=segment_hash(head or b""),
        key=pair.there.workspace.key(),
        epoch=2,
    )
    journal = pair.there.run_dir / JOURNAL
    frames = [*[*log._journal.read()][:3], other]
    journal.write_bytes(b"".join(map(frame, frames)))
    with pytest.raises(ConflictError, match="an epoch has one writer"):
        pair.take(pair.there, 2)


def test_a_server_that_is_away_is_said_to_be(
    pair: Pair, server: UserServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.kill()
    with pytest.raises(StoreUnavailableError):
        pair.here.take(0, server.url, pair.log_id)


def test_objects_come_with_the_run(pair: Pair) -> None:
    log = pair.take(pair.here, 0)
    told = msgspec.structs.replace(
        started(pair.here.workspace.key(), pair.log_id), certificate=log.credentials.certificate
    )
    log.append(told)
    policy, seen = log.keep(b"policy"), log.keep(b"seen" * 300_000)
    asked = ControllerConsulted(time=1.0, step=1, controller="", policy=policy, consultation=seen)
    assert log.append(asked).wait(10)
    with closing(pair.stream()) as stream:  # Before the segment that names them.
        assert stream.objects().digests() == {policy, seen}
    checkpoint = pair.here.run_dir / "state"
    checkpoint.write_bytes(b"weights" * 200_000)
    digest = digest_of(checkpoint.read_bytes())
    assert log.copies is not None
    assert log.copies.send(digest, checkpoint)
    log.close()
    after = pair.take(pair.there, 1)
    objects = pair.there.run_dir / "objects"
    wait_until(lambda: path_of(objects, policy).exists() and path_of(objects, seen).exists())
    assert read_object(objects, seen) == b"seen" * 300_000
    assert after.copies is not None
    assert after.copies.fetch(digest, pair.there.run_dir / "state")
    assert (pair.there.run_dir / "state").read_bytes() == checkpoint.read_bytes()
    assert not after.copies.fetch("0" * 64, pair.there.run_dir / "none")
    after.copies.remove([digest])
    assert not after.copies.fetch(digest, pair.there.run_dir / "again")
    after.close()


def test_without_the_object_store_the_run_goes_on(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = pair.begin(plateau(1))
    away = True
    connect = ObjectCopies._opened

    def refuse(copies: ObjectCopies) -> object:
        if away:
            raise StoreUnavailableError("the object store does not answer")
        return connect(copies)

    monkeypatch.setattr(ObjectCopies, "_opened", refuse)
    monkeypatch.setattr("esper.log.copies._COOLDOWN_SECONDS", 0.1)
    policy = log.keep(b"policy")
    assert log.append(
        ControllerConsulted(time=1.0, step=1, controller="", policy=policy, consultation=policy)
    ).wait(10)
    assert log.breakers["objects"].state == "open"
    assert log.breakers["objects"].reason == "the object store does not answer"
    away = False
    log.breakers["objects"]._due = 0.0
    wait_until(lambda: log.breakers["objects"].state == "closed")
    assert log.flush(10)
    wait_until(lambda: sum(isinstance(r.event, ReplicaChanged) for r in log.records()) == 2)
    changes = [r.event for r in log.records() if isinstance(r.event, ReplicaChanged)]
    assert [(c.replica.split()[0], c.state) for c in changes] == [
        ("objects", "lagging"),
        ("objects", "level"),
    ]
    with closing(pair.stream()) as stream:
        assert stream.objects().digests() == {policy}
    log.close()


def test_with_the_journal_as_history_a_run_stays_where_it_lies(pair: Pair) -> None:
    def lease(machine: Machine, epoch: int) -> EventLog:
        return lease_run_log(
            machine.run_dir,
            Lease(epoch, machine.name, pair.log_id),
            workspace=machine.workspace,
            nats=pair.url,
            ack="journal",
        )

    log = lease(pair.here, 0)
    told = msgspec.structs.replace(
        started(pair.here.workspace.key(), pair.log_id), certificate=log.credentials.certificate
    )
    assert log.append(told).wait(10)
    assert log.close().behind == 0
    again = lease(pair.here, 1)
    assert kinds(again) == ["RunStarted"]
    again.close()
    with pytest.raises(LogError, match='needs ack = "jetstream"'):
        lease(pair.there, 1)
