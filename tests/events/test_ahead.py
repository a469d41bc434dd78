"""A long log read on all cores is judged as one core judges it, fault for fault."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from esper_events import ahead, helper
from esper_events.events import PlateauDetected
from esper_events.framing import JOURNAL, frame
from esper_events.helper import Batch, Helper
from esper_events.keys import SigningKey
from esper_events.verify import Report, verify_path
from support.event_runs import Run, make_run, started

SEGMENTS = 900
FORGED = range(400, 800)
"""Where faults lie: helpers are at work there."""


@pytest.fixture(scope="module")
def long_run(key: SigningKey) -> Run:
    """One event a segment."""
    steps = [(PlateauDetected(time=1.0, step=step, figures={}),) for step in range(SEGMENTS - 1)]
    return make_run(key, [(started(key),), *steps])


@pytest.fixture
def helped(monkeypatch: pytest.MonkeyPatch) -> list[Helper]:
    """The helpers that were started, each waited for until it is ready."""
    begun: list[Helper] = []

    class Ready(Helper):
        def __init__(self) -> None:
            super().__init__()
            begun.append(self)
            deadline = time.monotonic() + 60
            while not self.ready and time.monotonic() < deadline:
                self.exchange()

    monkeypatch.setattr(ahead, "WORTH_SECONDS", 0.0)
    monkeypatch.setattr(ahead, "cores", lambda: 3)
    monkeypatch.setattr(ahead, "Helper", Ready)
    return begun


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """Every batch that a helper was given, with what came of it."""
    given: list[Batch] = []
    give = Helper.give

    def spy(self: Helper, batch: Batch) -> None:
        given.append(batch)
        give(self, batch)

    monkeypatch.setattr(Helper, "give", spy)
    return given


def alone(path: Path) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead, "WORTH_SECONDS", float("inf"))
        return verify_path(path)


def flipped(data: bytes, byte: int, bit: int = 0) -> bytes:
    return data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :]


def a_bit(segments: list[bytes], source: random.Random, at: int) -> None:
    segments[at] = flipped(segments[at], source.randrange(len(segments[at])), source.randrange(8))


def a_signature(segments: list[bytes], source: random.Random, at: int) -> None:
    segments[at] = flipped(segments[at], len(segments[at]) - 1 - source.randrange(64))


def an_exchange(segments: list[bytes], source: random.Random, at: int) -> None:
    segments[at], segments[at + 1] = segments[at + 1], segments[at]


def a_stranger(segments: list[bytes], source: random.Random, at: int) -> None:
    segments[at] = segments[at][:-64] + SigningKey.generate().sign(segments[at][:-64])


def a_key_id(segments: list[bytes], source: random.Random, at: int) -> None:
    segments[at] = flipped(segments[at], 10 + source.randrange(17))


def no_segment(segments: list[bytes], source: random.Random, at: int) -> None:
    segments[at] = segments[at][:40]


def a_gap(segments: list[bytes], source: random.Random, at: int) -> None:
    del segments[at]


def two(segments: list[bytes], source: random.Random, at: int) -> None:
    a_signature(segments, source, at + 40)
    a_bit(segments, source, at)


FAULTS = [a_bit, a_signature, an_exchange, a_stranger, a_key_id, no_segment, a_gap, two]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_as_by_one_core(
    fault: Callable[[list[bytes], random.Random, int], None],
    long_run: Run,
    tmp_path: Path,
    helped: list[Helper],
    answers: list[Batch],
) -> None:
    journal, source = long_run.write(tmp_path), random.Random(fault.__name__)
    segments, at = list(long_run.segments), source.choice(FORGED)
    fault(segments, source, at)
    journal.write_bytes(b"".join(map(frame, segments)))
    report = verify_path(tmp_path)
    assert not report.ok
    assert report.segments == at
    assert report == alone(tmp_path)
    assert helped
    assert any(batch.found and any(batch.found) for batch in answers)


def test_a_cut_is_named_as_by_one_core(long_run: Run, tmp_path: Path, helped: list[Helper]) -> None:
    journal = long_run.write(tmp_path)
    whole = journal.stat().st_size
    for cut in (whole - 1, whole * 2 // 3):
        os.truncate(journal, cut)
        report = verify_path(tmp_path)
        assert "the file ends" in report.message
        assert report == alone(tmp_path)


def test_a_whole_log_is_whole_on_all_cores(
    long_run: Run, tmp_path: Path, helped: list[Helper], answers: list[Batch]
) -> None:
    long_run.write(tmp_path)
    report = verify_path(tmp_path)
    assert report.ok
    assert (report.events, report.checkpoint) == (SEGMENTS, SEGMENTS)
    assert report == alone(tmp_path)
    used = sum(len(batch.segments) for batch in answers if batch.found and all(batch.found))
    assert used > SEGMENTS // 10
    assert all(one._process.poll() is not None for one in helped)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_helper_that_dies_or_hangs_is_done_without(
    number: signal.Signals,
    long_run: Run,
    tmp_path: Path,
    helped: list[Helper],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long_run.write(tmp_path)
    give, given = Helper.give, 0

    def strike(self: Helper, batch: Batch) -> None:
        nonlocal given
        given += 1
        give(self, batch)
        if given == 4:
            for one in helped:
                os.kill(one._process.pid, number)

    monkeypatch.setattr(Helper, "give", strike)
    report = verify_path(tmp_path)
    assert report.ok
    assert report == alone(tmp_path)


def test_what_is_no_answer_is_none(
    long_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helped: list[Helper]
) -> None:
    long_run.write(tmp_path)
    monkeypatch.setattr(
        helper, "_PROGRAM", "import sys; sys.stdout.write('\\0\\0\\0\\0' + 'x' * 99)"
    )
    report = verify_path(tmp_path)
    assert report.ok
    assert helped
    assert all(one.lost for one in helped)


def test_a_short_log_starts_no_process(
    long_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "Helper", lambda: pytest.fail("a process was started"))
    assert long_run.write(tmp_path).name == JOURNAL.name
    assert verify_path(tmp_path).ok
