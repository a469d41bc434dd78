"""The log as a trainer sees it: appending, acknowledgement, failure, the end."""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.log.errors import JournalError, LogClosedError, LogError
from esper.log.event_log import EventLog
from esper.log.journal import JournalStore
from esper.log.memory import MemoryStore
from esper.log.objects import read_object
from esper_events.events import PlateauDetected, RunEnded
from esper_events.keys import SigningKey
from esper_events.verify import verify_path
from support.log_runs import ended, plateau, python, started


class GatedStore(MemoryStore):
    """A disk that answers only while the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()

    def append(self, position: int, segment: bytes) -> None:
        self.entered.set()
        self.gate.wait(20)
        super().append(position, segment)


@pytest.fixture
def gated() -> Iterator[GatedStore]:
    store = GatedStore()
    yield store
    store.gate.set()


def test_acknowledged_events_are_records_in_order(key: SigningKey) -> None:
    log = EventLog(MemoryStore(), key, "r")
    first = log.append(started(key))
    second = log.append(plateau(1), plateau(2))
    assert (first.first_index, second.first_index, second.count) == (0, 1, 2)
    assert second.wait(5)
    assert first.acknowledged
    assert [r.index for r in log.records()] == [0, 1, 2]
    assert [r.event for r in log.records(1)] == [plateau(1), plateau(2)]
    assert log.close().events == 3


def test_appending_never_waits_and_what_gathers_becomes_one_segment(
    key: SigningKey, gated: GatedStore
) -> None:
    log = EventLog(gated, key, "r")
    log.append(started(key))
    assert gated.entered.wait(5)
    begin = time.perf_counter()
    tickets = [log.append(plateau(n)) for n in range(200)]
    assert time.perf_counter() - begin < 1
    assert not log.flush(0.01)
    assert not any(ticket.acknowledged for ticket in tickets)
    assert log.records() == []
    gated.gate.set()
    assert log.flush(5)
    assert all(ticket.acknowledged for ticket in tickets)
    summary = log.close()
    assert (summary.events, summary.segments) == (201, 2)


def test_an_event_is_acknowledged_only_after_its_sync(
    tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(JournalStore(tmp_path / "journal"), key, "r")
    log.append(started(key)).wait(5)
    entered, gate = threading.Event(), threading.Event()
    real = os.fsync

    def slow(descriptor: int) -> None:
        entered.set()
        gate.wait(10)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    ticket = log.append(plateau(1))
    assert entered.wait(5)
    assert not ticket.wait(0.05)
    assert len(log.records()) == 1
    gate.set()
    assert ticket.wait(5)
    log.close()


def test_what_an_event_names_is_synced_before_it_and_kept_once(
    tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(JournalStore(tmp_path / "journal"), key, "r", run_dir=tmp_path)
    log.append(started(key)).wait(5)
    synced: list[str] = []
    real = os.fsync

    def watched(descriptor: int) -> None:
        real(descriptor)
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append("object" if "/.sha256-" in name else Path(name).name)

    monkeypatch.setattr(os, "fsync", watched)
    for step in (1, 2):
        digest = log.keep(b"seen")
        assert log.append(plateau(step)).wait(5)
    objects = tmp_path / "objects"
    assert synced[:4] == [tmp_path.name, "object", "objects", "segments"]
    assert synced.count("object") == 1
    assert [path.name for path in objects.iterdir()] == [f"sha256-{digest}"]
    assert read_object(objects, digest) == b"seen"
    log.close()


def test_an_object_that_cannot_be_written_lets_no_event_name_it(
    tmp_path: Path, key: SigningKey
) -> None:
    log = EventLog(JournalStore(tmp_path / "journal"), key, "r", run_dir=tmp_path)
    assert log.append(started(key)).wait(5)
    (tmp_path / "objects").write_bytes(b"in the way")
    log.keep(b"seen")
    assert not log.append(plateau(1)).wait(5)
    assert isinstance(log.failure, JournalError)
    assert log.close().events == 1


def test_many_threads_append_without_loss(key: SigningKey) -> None:
    log = EventLog(MemoryStore(), key, "r")
    log.append(started(key))

    def work(thread: int) -> None:
        for n in range(200):
            log.append(plateau(1000 * thread + n))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.flush(10)
    steps = [r.event.step for r in log.records(1) if isinstance(r.event, PlateauDetected)]
    assert len(steps) == 800
    for thread in range(4):
        own = [step for step in steps if step // 1000 == thread]
        assert own == sorted(own)
    log.close()


def test_a_large_backlog_is_split_into_segments_that_a_server_takes(
    key: SigningKey, gated: GatedStore
) -> None:
    log = EventLog(gated, key, "r")
    log.append(started(key))
    assert gated.entered.wait(5)
    fat = PlateauDetected(time=0.0, step=0, figures={"x" * 100_000: 1.0})
    for _ in range(20):
        log.append(fat)
    gated.gate.set()
    log.close()
    assert max(map(len, gated.read())) < 1 << 20
    assert gated.count == 5


def test_too_much_in_one_append_is_refused(key: SigningKey) -> None:
    log = EventLog(MemoryStore(), key, "r")
    log.append(started(key))
    fat = PlateauDetected(time=0.0, step=0, figures={"x" * 1_000_000: 1.0})
    with pytest.raises(LogError, match="append them in parts"):
        log.append(*[fat] * 9)
    with pytest.raises(LogError, match="an event of 2000066 bytes"):
        log.append(PlateauDetected(time=0.0, step=0, figures={"x" * 2_000_000: 1.0}))
    assert log.append(plateau(1)).wait(5)
    log.close()


def test_nothing_is_appended_after_the_end_or_after_closing(key: SigningKey) -> None:
    store = MemoryStore()
    log = EventLog(store, key, "r")
    log.append(started(key))
    log.append(ended())
    with pytest.raises(LogClosedError, match="end of its run"):
        log.append(plateau(1))
    first = log.close()
    assert log.close() == first
    with pytest.raises(LogClosedError, match="is closed"):
        log.append(plateau(1))
    again = EventLog(store, key, "r")
    assert isinstance(again.records()[-1].event, RunEnded)
    with pytest.raises(LogClosedError, match="end of its run"):
        again.append(plateau(1))
    again.close()


def test_an_event_that_no_verifier_would_accept_is_never_written(key: SigningKey) -> None:
    store = MemoryStore()
    log = EventLog(store, key, "r")
    ticket = log.append(plateau(1))
    assert not ticket.wait(5)
    assert "wanted run.started" in str(ticket.error)
    assert ticket.error is log.failure
    assert log.append(started(key)).error is log.failure
    assert log.close().segments == 0
    assert store.count == 0


def test_continuing_a_log_needs_its_key_and_its_name(key: SigningKey) -> None:
    store = MemoryStore()
    log = EventLog(store, key, "r")
    log.append(started(key))
    log.close()
    with pytest.raises(LogError, match="holds log 'r', wanted 'other'"):
        EventLog(store, key, "other")
    with pytest.raises(JournalError, match="has no role in this log"):
        EventLog(store, SigningKey.generate(), "r")


def test_a_failing_disk_fails_the_tickets_and_hangs_nothing(
    tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(JournalStore(tmp_path / "journal"), key, "r", run_dir=tmp_path)
    assert log.append(started(key)).wait(5)

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        ticket = log.append(plateau(1))
        assert not ticket.wait(5)
    assert isinstance(log.failure, JournalError)
    assert "No space left on device" in str(ticket.error)
    assert log.append(plateau(2)).error is log.failure
    assert not log.flush(1)
    begin = time.monotonic()
    assert log.close().segments == 1
    assert time.monotonic() - begin < 2


def test_a_full_disk_leaves_a_log_that_verifies(tmp_path: Path, key: SigningKey) -> None:
    log = EventLog(JournalStore(tmp_path / "journal"), key, "r", run_dir=tmp_path)
    assert log.append(started(key)).wait(5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        tickets = []
        while log.failure is None:
            tickets.append(log.append(plateau(len(tickets))))
            tickets[-1].wait(5)
        summary = log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in str(log.failure)
    acknowledged = sum(ticket.acknowledged for ticket in tickets)
    assert summary.events == 1 + acknowledged
    report = verify_path(tmp_path)
    assert report.ok
    assert report.events == summary.events


def test_a_disk_that_hangs_does_not_hang_closing(key: SigningKey, gated: GatedStore) -> None:
    log = EventLog(gated, key, "r")
    ticket = log.append(started(key))
    assert gated.entered.wait(5)
    begin = time.monotonic()
    summary = log.close(timeout=0.3)
    assert time.monotonic() - begin < 2
    assert summary.events == 0
    assert "did not answer" in str(ticket.error)


def test_closing_signs_a_checkpoint_of_everything(tmp_path: Path, key: SigningKey) -> None:
    log = EventLog(JournalStore(tmp_path / "journal"), key, "r", run_dir=tmp_path)
    log.append(started(key))
    log.append(plateau(1))
    log.append(ended())
    summary = log.close()
    report = verify_path(tmp_path, key.public)
    assert report.ok
    assert (report.events, report.checkpoint, report.head) == (3, 3, summary.head)


AT_EXIT = """
import sys
from pathlib import Path
from esper_events.keys import SigningKey
from esper.log.event_log import EventLog
from esper.log.journal import JournalStore
from support.log_runs import started, plateau
directory, key = Path(sys.argv[1]), SigningKey.generate()
log = EventLog(JournalStore(directory / "journal"), key, "r", run_dir=directory)
log.append(started(key))
for n in range(50):
    log.append(plateau(n))
if sys.argv[2] == "raise":
    raise RuntimeError("the loop broke")
"""


@pytest.mark.parametrize("how", ["return", "raise"])
def test_an_interpreter_that_exits_keeps_what_was_appended(tmp_path: Path, how: str) -> None:
    process = python(AT_EXIT, str(tmp_path), how)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == (1 if how == "raise" else 0)
    assert ("the loop broke" in errors) == (how == "raise")
    assert errors.count("Traceback") == (1 if how == "raise" else 0)
    report = verify_path(tmp_path)
    assert (report.ok, report.events, report.checkpoint) == (True, 51, 51)


def refused_in_child(log: EventLog) -> bool:
    signal.alarm(5)  # a deadlock would be the failure to see
    try:
        log.append(plateau(1))
    except LogError as error:
        return "the process that opened it" in str(error)
    return False


def test_a_forked_child_neither_writes_nor_closes_its_parents_log(key: SigningKey) -> None:
    log = EventLog(MemoryStore(), key, "r")
    log.append(started(key)).wait(5)
    with log._arrived:  # held by another thread, as it may be when a data loader forks
        child = os.fork()
        if child == 0:
            os._exit(0 if refused_in_child(log) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert log.append(plateau(2)).wait(5)
    log.close()
