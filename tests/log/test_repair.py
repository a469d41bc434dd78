"""Either copy of a run is made anew from the other, and so are its objects."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from esper.log.endpoint import Endpoint
from esper.log.errors import ConflictError, JournalError
from esper.log.jetstream import JetStreamStore
from esper.log.objects import digest_of, path_of
from esper.log.repair import Repair, repair_replica
from esper.log.run import open_run_log
from esper.log.workspace import Workspace
from esper_events.codec import encode_event
from esper_events.events import CheckpointWritten, ControllerConsulted
from esper_events.framing import JOURNAL, frame, read_frames
from esper_events.segment import GENESIS, open_segment, seal, segment_hash
from esper_events.verify import verify_path
from support.log_runs import UserServer, ended, plateau, started, wait_until

EVENTS = 8


class Run:
    """A run of which the server has the first ``copied`` segments, or all."""

    def __init__(self, directory: Path, log_id: str, server: UserServer) -> None:
        self.directory = directory / "run"
        self.journal = self.directory / JOURNAL
        self.workspace = Workspace(directory / "workspace")
        self.url = server.url
        log = open_run_log(self.directory, log_id=log_id, workspace=self.workspace, nats=server.url)
        log.append(started(self.workspace.key(), log_id)).wait(10)
        self.objects = [log.keep(data) for data in (b"policy", b"consultation" * 100_000)]
        policy, seen = self.objects
        log.append(
            ControllerConsulted(time=1.0, step=1, controller="", policy=policy, consultation=seen)
        ).wait(10)
        checkpoint = self.directory / "checkpoints" / "000000002.safetensors"
        checkpoint.parent.mkdir()
        checkpoint.write_bytes(random.Random(0).randbytes(3_000_000))
        self.checkpoint = checkpoint
        log.append(
            CheckpointWritten(time=1.0, step=2, file=digest_of(checkpoint.read_bytes()), weights="")
        ).wait(10)
        for step in range(3, EVENTS - 1):
            log.append(plateau(step)).wait(10)
        log.append(ended(EVENTS)).wait(10)
        assert log.copies is not None
        wait_until(lambda: not log.copies._todo)
        assert log.close().behind == 0
        self.whole = self.journal.read_bytes()

    def repair(self) -> Repair:
        return repair_replica(self.directory, self.workspace, self.url)

    def frames(self) -> list[bytes]:
        return [segment for _, segment in read_frames(self.whole)]


@pytest.fixture
def run(tmp_path: Path, shared_server: UserServer, fresh_log: Callable[[], str]) -> Run:
    return Run(tmp_path, fresh_log(), shared_server)


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_journal_with_a_flipped_bit_anywhere_is_rebuilt(run: Run) -> None:
    places = random.Random(1).sample(range(8 * len(run.whole)), 40)
    for bit in (*places, 0, 8 * len(run.whole) - 1):
        damaged = flip(run.whole, bit)
        run.journal.write_bytes(damaged)
        done = run.repair()
        assert run.journal.read_bytes() == run.whole
        assert "of its segments come from the server" in str(done)
    aside = sorted(run.journal.parent.glob("damaged-*"))
    assert len(aside) == len(places) + 2
    assert (run.journal.parent / "damaged-41").read_bytes() == damaged
    assert verify_path(run.directory).ok
    assert "was whole" in str(run.repair())


def test_a_journal_that_was_cut_is_completed(run: Run) -> None:
    for size in (0, 3, len(run.whole) // 2, len(run.whole) - 1):
        run.journal.write_bytes(run.whole[:size])
        assert run.repair().sent == 0
        assert run.journal.read_bytes() == run.whole


def served(run: Run, server: UserServer, segments: int) -> None:
    """Let the run's server be one that has only the first ``segments`` of its log."""
    run.url = server.url
    log_id = open_segment(run.frames()[0]).log
    with closing(JetStreamStore(Endpoint(server.url), log_id)) as store:
        for position, segment in enumerate(run.frames()[:segments]):
            store.append(position, segment)


def damaged_in(run: Run, *numbers: int) -> bytes:
    """The journal with a flipped bit in these segments."""
    frames = [frame(s) for s in run.frames()]
    for number in numbers:
        frames[number] = flip(frames[number], 8 * len(frames[number]) - 1)
    return b"".join(frames)


def test_what_only_the_journal_has_behind_its_damage_is_kept(run: Run, server: UserServer) -> None:
    served(run, server, 5)
    run.journal.write_bytes(damaged_in(run, 2))
    done = run.repair()
    assert run.journal.read_bytes() == run.whole
    assert done.sent == len(run.frames()) - 5
    assert "damaged (segment 2" in done.rebuilt


def test_what_is_missing_in_both_is_not_made_up(run: Run, server: UserServer) -> None:
    served(run, server, 5)
    damaged = damaged_in(run, 2, 6)
    run.journal.write_bytes(damaged)
    with pytest.raises(JournalError, match="together are not whole: .* cut or rolled back"):
        run.repair()
    assert run.journal.read_bytes() == damaged


def test_another_history_is_not_taken_for_the_end_of_this_one(run: Run, server: UserServer) -> None:
    """As the end of a journal is that belongs to a run which another machine took over."""
    served(run, server, 5)
    (run.directory / "checkpoint").unlink()
    key, frames = run.workspace.key(), run.frames()
    other = seal(
        [encode_event(plateau(99))],
        log=open_segment(frames[0]).log,
        first_index=open_segment(frames[3]).first_index,
        previous=segment_hash(frames[2]),
        key=key,
    )
    forked = b"".join(frame(s) for s in (*frames[:3], other, b"no segment"))
    run.journal.write_bytes(forked)
    with pytest.raises(ConflictError, match="another writer"):
        run.repair()
    assert run.journal.read_bytes() == forked


def test_the_private_server_takes_objects_and_lets_checkpoints_go(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    log = open_run_log(tmp_path / "run", log_id="r", workspace=workspace)
    assert log.copies is not None
    path = tmp_path / "state"
    path.write_bytes(b"weights")
    digest = digest_of(b"weights")
    assert log.copies.send(digest, path)
    assert log.copies.fetch(digest, tmp_path / "again")
    log.copies.remove([digest])
    assert not log.copies.fetch(digest, tmp_path / "gone")
    assert log.breakers["objects"].state == "closed"
    log.close()


def test_objects_and_checkpoints_are_brought_to_where_they_are_missing(run: Run) -> None:
    files = [path_of(run.directory / "objects", d) for d in run.objects]
    kept = [path.read_bytes() for path in (*files, run.checkpoint)]
    files[0].unlink()
    files[1].write_bytes(b"something else")
    first = run.repair()
    assert first.objects == "objects: 1 sent, 2 fetched"  # The checkpoint was not a trainer's.
    log_id = open_segment(run.frames()[0]).log
    with closing(JetStreamStore(Endpoint(run.url), log_id)) as store:
        store.objects().delete(run.objects[1])
        assert run.objects[1] not in store.objects().digests()
    run.checkpoint.unlink()
    assert run.repair().objects == "objects: 1 sent, 1 fetched"
    assert [path.read_bytes() for path in (*files, run.checkpoint)] == kept
    assert run.repair().objects == ""


def test_what_a_newer_version_wrote_is_copied_either_way(
    tmp_path: Path, shared_server: UserServer, fresh_log: Callable[[], str]
) -> None:
    log, workspace, journal = fresh_log(), Workspace(tmp_path / "workspace"), tmp_path / JOURNAL
    key = workspace.key()
    begun = msgspec.structs.replace(started(key, log), version="9.0.0")
    unknown = msgspec.msgpack.encode({"kind": "seed.split", "time": 2.5, "into": [1, 2]})
    segments, events = list[bytes](), (encode_event(begun), unknown, encode_event(ended(3)))
    for index, event in enumerate(events):
        previous = segment_hash(segments[-1]) if segments else GENESIS
        segments.append(seal([event], log=log, first_index=index, previous=previous, key=key))
    journal.parent.mkdir()
    whole = b"".join(map(frame, segments))
    journal.write_bytes(whole)
    done = repair_replica(tmp_path, workspace, shared_server.url)
    assert (done.sent, done.damage) == (3, "")
    journal.write_bytes(frame(segments[0]))
    done = repair_replica(tmp_path, workspace, shared_server.url)
    assert "2 of its segments come from the server now" in done.rebuilt
    assert journal.read_bytes() == whole
