"""A bit flipped in the server's store is found and repaired from the journal; `make flip-campaign`
flips every bit."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from benchmarks.flip_campaign import (
    LOG,
    STREAM,
    Flip,
    all_flips,
    copy_in,
    prepare,
    segments_of,
    trial,
)
from esper.log.damaged import DAMAGED
from esper.log.errors import (
    ConflictError,
    DamagedStoreError,
    LogError,
    ServerError,
    ServerStartError,
)
from esper.log.journal import JournalStore
from esper.log.repair import repair_replica
from esper.log.run import open_run_log
from esper.log.sources import source_for
from esper.log.workspace import Workspace
from support.log_runs import UserServer, plateau, sealed, started, wait_until

PATIENCE = 4.0
"""Seconds for a server to start: one that meets an absurd sequence in its store never ends."""


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and its workspace as its server left it."""
    directory = tmp_path_factory.mktemp("flips")
    prepare(directory)
    return directory


@pytest.fixture
def run_dir(left: Path, tmp_path: Path) -> Path:
    return shutil.copytree(left / "run", tmp_path / "run")


@pytest.fixture
def area(left: Path, tmp_path: Path) -> Workspace:
    return Workspace(shutil.copytree(left / "ended", tmp_path / "workspace"))


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def second_record(messages: Path) -> int:
    """Where the second message begins in a file of the server's: each begins with its length."""
    return int.from_bytes(messages.read_bytes()[:4], "little") & 0x7FFFFFFF


def moved(area: Workspace) -> list[str]:
    return [path.name for path in (area.path / "server" / DAMAGED).glob("*")]


def test_flipped_bits_are_found_and_made_good(left: Path) -> None:
    flips = all_flips(left)
    outcomes = [trial(left, one) for one in flips[:: len(flips) // 12]]
    assert [f"{o.flip}: {o.problem}" for o in outcomes if o.problem] == []
    assert {o.flip.file for o in outcomes} >= {"msgs/1.blk", "meta.inf", "journal/segments"}


def test_a_lost_message_makes_the_stream_anew_and_keeps_what_was_there(
    left: Path, run_dir: Path, area: Workspace
) -> None:
    damaged = area.path / STREAM / "msgs" / "1.blk"
    flip(damaged, damaged.stat().st_size // 2)
    bytes_found = damaged.read_bytes()
    done = repair_replica(run_dir, area)
    assert done.sent == done.segments == 4
    assert "damaged" in str(done)
    assert moved(area) == [f"ESPER_RUN_{LOG}-0"]
    kept = area.path / "server" / DAMAGED / f"ESPER_RUN_{LOG}-0" / "msgs" / "1.blk"
    assert kept.read_bytes() == bytes_found
    assert repair_replica(run_dir, area).replaced == ""


@pytest.mark.parametrize(
    ("byte", "reason"),
    [(9, "did not start"), (37, "segment 1 is none")],
    ids=["its sequence", "where its headers end"],
)
def test_what_no_checksum_of_the_server_covers_is_repaired(
    byte: int, reason: str, run_dir: Path, area: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper.log.supervisor.START_SECONDS", PATIENCE)
    messages = area.path / STREAM / "msgs" / "1.blk"
    flip(messages, second_record(messages) + byte)
    done = repair_replica(run_dir, area)
    assert reason in done.replaced
    assert done.sent == done.segments
    assert copy_in(area) == segments_of(run_dir)


def test_a_stream_that_is_not_to_blame_is_put_back(
    run_dir: Path, area: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_run_log(tmp_path / "other", log_id="other", workspace=area)
    other.append(started(area.key(), "other"), plateau(1))
    for step in range(2):
        other.append(plateau(step)).wait(30)
    assert other.close(60).behind == 0
    monkeypatch.setattr("esper.log.supervisor.START_SECONDS", PATIENCE)
    messages = area.path / STREAM.with_name("ESPER_RUN_other") / "msgs" / "1.blk"
    wait_until(lambda: not (area.path / "server" / "endpoint.json").exists())
    flip(messages, second_record(messages) + 9)
    with pytest.raises(ServerStartError):
        repair_replica(run_dir, area)
    assert moved(area) == []
    assert (area.path / STREAM / "msgs" / "1.blk").exists()


def test_another_history_on_the_server_is_no_damage(run_dir: Path, area: Workspace) -> None:
    key = area.key()
    shutil.rmtree(area.path / STREAM)
    source = source_for(LOG, area, None)
    store = source.connect()
    for position, segment in enumerate(sealed(key, 3, LOG, salt=7)):
        store.append(position, segment)
    store.close()
    source.close()
    with pytest.raises(ConflictError, match="another writer"):
        repair_replica(run_dir, area)
    assert moved(area) == []


def test_two_damaged_copies_are_left_as_they_are(run_dir: Path, area: Workspace) -> None:
    damaged = area.path / STREAM / "msgs" / "1.blk"
    flip(damaged, damaged.stat().st_size // 2)
    journal = run_dir / "journal" / "segments"
    flip(journal, journal.stat().st_size - 1)
    before = journal.read_bytes()
    with pytest.raises(LogError):
        repair_replica(run_dir, area)
    assert moved(area) == []
    assert journal.read_bytes() == before


def test_a_journal_that_was_cut_takes_no_copys_place(run_dir: Path, area: Workspace) -> None:
    damaged = area.path / STREAM / "msgs" / "1.blk"
    flip(damaged, damaged.stat().st_size // 2)
    store = JournalStore(run_dir / "journal")
    segments = list(store.read())
    store.replace(segments[:-1])
    store.close()
    with pytest.raises(LogError):
        repair_replica(run_dir, area)
    assert moved(area) == []


def test_a_server_in_use_is_not_taken_from_others(
    run_dir: Path, area: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper.log.damaged._STOP_SECONDS", 0.2)
    damaged = area.path / STREAM / "msgs" / "1.blk"
    flip(damaged, damaged.stat().st_size // 2)
    other = open_run_log(tmp_path / "other", log_id="other", workspace=area)
    try:
        with pytest.raises(ServerError, match="in use by other runs"):
            repair_replica(run_dir, area)
    finally:
        other.close()
    assert moved(area) == []
    assert repair_replica(run_dir, area).sent == 4


def test_the_stream_of_a_users_server_is_the_users_to_delete(
    run_dir: Path, area: Workspace, server: UserServer
) -> None:
    assert repair_replica(run_dir, area, server.url).sent == 4
    server.signal(signal.SIGTERM)
    assert server.process is not None
    server.process.wait()
    (damaged,) = (server.directory / "store").glob("jetstream/**/streams/ESPER_RUN_*/msgs/1.blk")
    flip(damaged, damaged.stat().st_size // 2)
    server.start()
    with pytest.raises(DamagedStoreError, match=f"delete the stream ESPER_RUN_{LOG}"):
        repair_replica(run_dir, area, server.url)


def test_the_copy_is_read_after_each_trial(left: Path, area: Workspace) -> None:
    """The campaign's own eyes: it sees a copy that is not the journal's."""
    shutil.rmtree(area.path / STREAM)
    assert copy_in(area) == []
    bad = Flip("ended", "meta.inf", 0)
    assert "byte 0, bit 0" in str(bad)
