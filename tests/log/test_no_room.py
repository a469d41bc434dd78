"""What has no room is not acknowledged, and what was there before stays whole."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from esper.log.errors import JournalError, NoRoomError
from esper.log.event_log import EventLog
from esper.log.journal import JournalStore
from esper_events.events import PlateauDetected, RunStarted
from esper_events.keys import SigningKey
from esper_events.reader import LogReader

KEY = SigningKey.generate()


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def failing(monkeypatch: pytest.MonkeyPatch, call: str, number: int, writes: int = 0) -> None:
    """Let the call of the system fail, behind so many bytes that are written."""

    def fail(descriptor: int, *arguments: Any) -> int:
        if call == "pwrite" and writes and len(arguments[0]) > writes:
            return real(descriptor, arguments[0][:writes], arguments[1])
        raise OSError(number, os.strerror(number))

    real: Any = getattr(os, call)
    monkeypatch.setattr(os, call, fail)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize(("call", "writes"), [("pwrite", 0), ("pwrite", 3), ("fsync", 0)])
def test_a_journal_without_room_says_so_and_is_cut_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, writes: int, number: int
) -> None:
    store = JournalStore(tmp_path / "journal")
    store.append(0, b"first")
    before = store.path.read_bytes()
    with monkeypatch.context() as patch:
        failing(patch, call, number, writes)
        with pytest.raises(NoRoomError, match=r"no room for the journal .* \(10 bytes: "):
            store.append(1, b"second")
    with pytest.raises(NoRoomError):  # Final: pages may be gone that this process cannot see.
        store.append(1, b"second")
    assert store.path.read_bytes() == before
    assert list(store.read()) == [b"first"]
    store.close()


def test_another_error_is_not_taken_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = JournalStore(tmp_path / "journal")
    with monkeypatch.context() as patch:
        failing(patch, "pwrite", errno.EIO)
        with pytest.raises(JournalError, match="cannot write the journal") as raised:
            store.append(0, b"first")
    assert not isinstance(raised.value, NoRoomError)
    store.close()


def plateau(step: int) -> PlateauDetected:
    return PlateauDetected(time=time.time(), step=step, figures={"held_out_loss": 1.0})


def opened(directory: Path) -> EventLog:
    log = EventLog(JournalStore(directory / "journal"), KEY, "own", run_dir=directory)
    if not log.records():
        started = RunStarted(
            time=0.0,
            run="own",
            trainer_key=KEY.public.raw,
            host_weights="",
            config="",
            seed=0,
            version="",
            platform={},
        )
        assert log.append(started).wait(10)
    return log


def test_what_a_full_disk_did_not_take_is_not_acknowledged(tmp_path: Path) -> None:
    """A real limit: the journal takes some of what comes, acknowledges that, and no more."""
    log = opened(tmp_path)
    size = (tmp_path / "journal" / "segments").stat().st_size
    with limited(size + 1500):
        tickets = []
        for step in range(20):
            tickets.append(log.append(plateau(step)))
            tickets[-1].wait(10)
        acknowledged = [ticket.acknowledged for ticket in tickets]
        log.close()
    assert 0 < sum(acknowledged) < 20
    assert acknowledged == sorted(acknowledged, reverse=True)
    assert isinstance(log.failure, NoRoomError)
    told = [record.event for record in LogReader(tmp_path).records()][1:]
    assert [event.step for event in told if isinstance(event, PlateauDetected)] == list(
        range(sum(acknowledged))
    )
    again = opened(tmp_path)
    assert again.append(plateau(99)).wait(10)
    again.close()
    assert again.failure is None


def test_an_object_without_room_fails_the_log(tmp_path: Path) -> None:
    log = opened(tmp_path)
    with limited(20_000):
        log.keep(bytes(30_000))
        ticket = log.append(plateau(1))
        ticket.wait(10)
        assert not ticket.acknowledged
        log.close()
    assert isinstance(log.failure, NoRoomError)
    assert "objects of the run" in str(log.failure)
