"""The server's copy in bad weather: killed, stopped, away, restored from the past, taken over."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from esper.log import run
from esper.log.endpoint import Endpoint
from esper.log.errors import ConflictError, JournalError, LogError, StoreUnavailableError
from esper.log.event_log import EventLog
from esper.log.jetstream import JetStreamStore
from esper.log.journal import JournalStore
from esper.log.repair import repair_replica
from esper.log.run import open_run_log, resume_run_log
from esper.log.settling import Acknowledgement
from esper.log.sources import EmbeddedSource, UserSource
from esper.log.workspace import Workspace
from esper_events.events import ReplicaChanged
from esper_events.keys import SigningKey
from esper_events.verify import verify_path
from support.log_runs import (
    UserServer,
    ended,
    is_alive,
    plateau,
    published,
    sealed,
    started,
    wait_until,
)


def journal_of(run_dir: Path) -> list[bytes]:
    store = JournalStore(run_dir / "journal")
    segments = list(store.read())
    store.close()
    return segments


def copy_on(url: str, log: str) -> list[bytes]:
    store = JetStreamStore(Endpoint(url), log)
    segments = list(store.read())
    store.close()
    return segments


def changes(log: EventLog) -> list[str]:
    return [r.event.state for r in log.records() if isinstance(r.event, ReplicaChanged)]


def level(log: EventLog) -> bool:
    return log.replica_state.standing == "level" and log.replica_state.behind == 0


def open_on(
    server: UserServer,
    tmp_path: Path,
    key: SigningKey,
    timeout: float = 1.0,
    log: str = "r",
    ack: Acknowledgement = "journal",
) -> EventLog:
    source = UserSource(Endpoint(server.url), log, timeout=timeout)
    journal = JournalStore(tmp_path / "run" / "journal")
    event_log = EventLog(journal, key, log, source, ack, run_dir=tmp_path / "run")
    event_log.append(started(key))
    return event_log


def test_two_runs_on_one_workspace_have_whole_copies(tmp_path: Path, workspace: Workspace) -> None:
    logs = [open_run_log(tmp_path / name, log_id=name, workspace=workspace) for name in ("a", "b")]
    for log in logs:
        log.append(started(workspace.key()))
        for n in range(50):
            log.append(plateau(n)).wait(5)
        log.append(ended())
    summaries = [log.close() for log in logs]
    assert [summary.behind for summary in summaries] == [0, 0]
    assert [changes(log) for log in logs] == [[], []]
    for name, summary in zip(("a", "b"), summaries, strict=True):
        report = verify_path(tmp_path / name, workspace.key().public)
        assert (report.ok, report.events, report.head) == (True, 52, summary.head)
        source = EmbeddedSource(workspace.attach_server(), name)
        store = source.connect()
        assert list(store.read()) == journal_of(tmp_path / name)
        store.close()
        source.close()


@pytest.mark.parametrize("victim", ["pid", "supervisor"])
def test_the_embedded_server_is_started_again_and_catches_up(
    tmp_path: Path, workspace: Workspace, victim: str
) -> None:
    log = open_run_log(tmp_path / "run", log_id="r", workspace=workspace)
    log.append(started(workspace.key()))
    wait_until(lambda: level(log))
    for round_ in range(3):
        os.kill(int(published(workspace.path / "server")[victim]), signal.SIGKILL)
        tickets = [log.append(plateau(10 * round_ + n)) for n in range(5)]
        assert all(ticket.wait(5) for ticket in tickets)
        wait_until(lambda: level(log))
    log.append(ended())
    assert log.close().behind == 0
    source = EmbeddedSource(workspace.attach_server(), "r")
    store = source.connect()
    assert list(store.read()) == journal_of(tmp_path / "run")
    store.close()
    source.close()
    assert verify_path(tmp_path / "run").ok


def test_a_server_that_stops_answering_makes_nothing_wait(
    server: UserServer, tmp_path: Path, key: SigningKey
) -> None:
    log = open_on(server, tmp_path, key, timeout=0.5)
    wait_until(lambda: level(log))
    server.signal(signal.SIGSTOP)
    begin = time.monotonic()
    tickets = [log.append(plateau(n)) for n in range(20)]
    assert all(ticket.wait(5) for ticket in tickets)
    assert time.monotonic() - begin < 1
    wait_until(lambda: log.replica_state.standing == "lagging")
    server.signal(signal.SIGCONT)
    wait_until(lambda: level(log))
    wait_until(lambda: changes(log) == ["lagging", "level"])
    assert log.close().behind == 0
    assert copy_on(server.url, "r") == journal_of(tmp_path / "run")


def test_a_server_that_goes_and_comes_back_ends_up_whole(
    server: UserServer, tmp_path: Path, key: SigningKey
) -> None:
    log = open_on(server, tmp_path, key)
    wait_until(lambda: level(log))
    for n in range(3):
        server.kill()
        assert log.append(plateau(n)).wait(5)
        wait_until(lambda: log.replica_state.standing == "lagging")
        server.start()
        wait_until(lambda: level(log))
    log.append(ended())
    summary = log.close()
    assert summary.behind == 0
    assert changes(log) == ["lagging", "level"] * 3
    assert copy_on(server.url, "r") == journal_of(tmp_path / "run")
    assert verify_path(tmp_path / "run").ok


def test_a_run_ends_well_without_its_server_and_is_repaired_later(
    server: UserServer, tmp_path: Path, workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    key = workspace.key()
    log = open_on(server, tmp_path, key)
    wait_until(lambda: level(log))
    server.kill()
    for n in range(5):
        assert log.append(plateau(n)).wait(5)
    log.append(ended())
    begin = time.monotonic()
    summary = log.close(timeout=1.0)
    assert time.monotonic() - begin < 4
    assert summary.behind == summary.segments - 1
    assert log.failure is None
    assert verify_path(tmp_path / "run").ok
    with pytest.raises(LogError, match="127.0.0.1"):
        repair_replica(tmp_path / "run", workspace, server.url)
    server.start()
    done = repair_replica(tmp_path / "run", workspace, server.url)
    assert (done.sent, done.segments) == (summary.behind, summary.segments)
    assert copy_on(server.url, "r") == journal_of(tmp_path / "run")
    assert repair_replica(tmp_path / "run", workspace, server.url).sent == 0
    out, err = capfd.readouterr()
    assert out + err == ""


@pytest.mark.parametrize("silent", [False, True], ids=["refusing", "silent"])
def test_closing_does_not_wait_for_a_server_that_is_known_to_be_away(
    server: UserServer, tmp_path: Path, key: SigningKey, silent: bool
) -> None:
    log = open_on(server, tmp_path, key)
    wait_until(lambda: level(log))
    server.signal(signal.SIGSTOP)
    if not silent:
        server.kill()
    log.append(plateau(1))
    wait_until(lambda: log.replica_state.standing == "lagging")
    log.append(ended())
    begin = time.monotonic()
    summary = log.close(timeout=600.0)
    assert time.monotonic() - begin < 60
    assert summary.behind == summary.segments - 1
    assert log.failure is None
    assert verify_path(tmp_path / "run").ok


def test_closing_completes_the_copy_on_a_server_that_has_just_come_back(
    server: UserServer, tmp_path: Path, key: SigningKey
) -> None:
    log = open_on(server, tmp_path, key)
    wait_until(lambda: level(log))
    server.kill()
    for n in range(100):
        log.append(plateau(n))
    wait_until(lambda: log.replica_state.standing == "lagging")
    log.append(ended())
    server.start()
    assert log.close().behind == 0
    assert copy_on(server.url, "r") == journal_of(tmp_path / "run")


def test_a_run_that_never_saw_its_server_can_be_given_to_the_embedded_one(
    tmp_path: Path, workspace: Workspace, server: UserServer
) -> None:
    server.kill()
    log = open_on(server, tmp_path, workspace.key())
    log.append(ended())
    assert log.close(timeout=0.2).behind > 0
    done = repair_replica(tmp_path / "run", workspace)
    assert (done.server, done.sent) == ("embedded", done.segments)
    assert "holds all" in str(done)


def test_a_server_restored_from_the_past_is_completed(
    server: UserServer, tmp_path: Path, key: SigningKey
) -> None:
    log = open_on(server, tmp_path, key)
    log.append(plateau(1)).wait(5)
    wait_until(lambda: level(log))
    server.kill()
    server.directory.joinpath("store").rename(tmp_path / "lost")
    server.start()
    log.append(plateau(2))
    log.append(ended())
    assert log.close().behind == 0
    assert copy_on(server.url, "r") == journal_of(tmp_path / "run")


def test_a_rival_on_the_server_is_told_and_the_run_goes_on(
    server: UserServer, tmp_path: Path, key: SigningKey
) -> None:
    log = open_on(server, tmp_path, key)
    wait_until(lambda: level(log))
    rival = JetStreamStore(Endpoint(server.url), "r")
    rival.append(1, sealed(SigningKey.generate(), 2)[1])
    rival.close()
    assert log.append(plateau(1)).wait(5)
    wait_until(lambda: "another writer has this run" in log.replica_state.reason)
    log.append(ended())
    summary = log.close(timeout=0.5)
    assert summary.behind == summary.segments - 1
    assert verify_path(tmp_path / "run").ok
    with pytest.raises(ConflictError, match="segment 1 on the server is not the journal's"):
        repair_replica(tmp_path / "run", Workspace(tmp_path / "w"), server.url)


def test_acknowledgement_by_the_server_waits_for_the_server(
    server: UserServer, tmp_path: Path, key: SigningKey
) -> None:
    source = UserSource(Endpoint(server.url), "r", timeout=1)
    log = EventLog(JournalStore(tmp_path / "journal"), key, "r", source, "jetstream")
    assert log.append(started(key)).wait(10)
    server.kill()
    ticket = log.append(plateau(1))
    assert not ticket.wait(0.3)
    assert len(log.records()) == 1
    server.start()
    assert ticket.wait(10)
    wait_until(lambda: changes(log) == ["lagging", "level"])
    server.kill()
    late = log.append(plateau(2))
    summary = log.close(timeout=0.3)
    assert "did not take the last" in str(late.error)
    assert summary.behind > 0


def test_what_a_killed_run_wrote_is_acknowledged_by_the_server_too(
    server: UserServer, tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal is not acknowledged because it is there: another machine may take the run over."""
    key = workspace.key()
    log = open_on(server, tmp_path, key, ack="jetstream")
    assert log.flush(10)
    server.kill()
    log.append(plateau(1))
    assert log.close(timeout=0.5).behind > 0

    def resumed() -> EventLog:
        return resume_run_log(
            tmp_path / "run",
            workspace=workspace,
            nats=server.url,
            ack="jetstream",
            accept_unproved=True,
        )

    monkeypatch.setattr(run, "_ANSWER_SECONDS", 0.3)
    with pytest.raises(StoreUnavailableError, match="has not acknowledged what the journal holds"):
        resumed()
    server.start()
    monkeypatch.setattr(run, "_ANSWER_SECONDS", 10.0)
    again = resumed()
    assert plateau(1) in [record.event for record in again.records()]
    again.close()


def test_repair_needs_a_journal_that_nobody_writes(
    tmp_path: Path, workspace: Workspace, key: SigningKey
) -> None:
    with pytest.raises(JournalError, match="holds no run, journal/segments is missing"):
        repair_replica(tmp_path, workspace)
    writer = JournalStore(tmp_path / "journal")
    with pytest.raises(ConflictError, match="being written by a run"):
        repair_replica(tmp_path, workspace)
    writer.close()
    with pytest.raises(JournalError, match="no valid segment"):
        repair_replica(tmp_path, workspace)


def test_open_run_log_refuses_a_directory_that_holds_a_run(
    tmp_path: Path, workspace: Workspace
) -> None:
    log = open_run_log(tmp_path / "run", log_id="r", workspace=workspace)
    log.append(started(workspace.key()))
    log.close()
    assert (tmp_path / "run" / "trainer.pub").exists()
    with pytest.raises(LogError, match="already holds the journal"):
        open_run_log(tmp_path / "run", log_id="s", workspace=workspace)


def test_an_unproved_server_is_warned_of_and_refused_as_the_only_acknowledgement(
    server: UserServer,
    tmp_path: Path,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fresh_log: Callable[[], str],
) -> None:
    def opened(name: str, **options: bool) -> EventLog:
        return open_run_log(
            tmp_path / name,
            log_id=name,
            workspace=workspace,
            nats=server.url,
            ack="jetstream",
            **options,
        )

    with pytest.raises(LogError, match="ESPER_NATS_MONITOR"):
        opened("a")
    assert not (tmp_path / "a").exists()
    opened("b", accept_unproved=True).close()
    assert "nothing shows that this server syncs" in caplog.text
    caplog.clear()
    monkeypatch.setenv("ESPER_NATS_MONITOR", server.monitor)
    log = opened("c")
    assert log.append(started(workspace.key())).wait(10)
    log.close()
    assert caplog.text == ""


def test_closing_lets_the_embedded_server_end(tmp_path: Path, workspace: Workspace) -> None:
    log = open_run_log(tmp_path / "run", log_id="r", workspace=workspace)
    wait_until(lambda: level(log))
    found = published(workspace.path / "server")
    log.close()
    wait_until(lambda: not is_alive(int(found["pid"])) and not is_alive(int(found["supervisor"])))
