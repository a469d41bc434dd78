"""A run tells the registry that it is there and how far it has come, whatever else happens."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from esper.log import registry as registry_module
from esper.log.entries import Signer
from esper.log.errors import ConflictError, StoreUnavailableError
from esper.log.event_log import EventLog
from esper.log.keyring import ROOT, TRAINER
from esper.log.memory import MemoryStore
from esper.log.registry import Registrar, open_registry
from esper.log.run import open_run_log, repair_replica, resume_run_log
from esper.log.seen import SeenSegments
from esper.log.takeover import Lease, take_over_run_log
from esper.log.workspace import Workspace
from esper_events.checkpoint import Checkpoint, write_checkpoint
from esper_events.keys import SigningKey
from esper_events.reader import read_checkpoint
from esper_events.registry import RunRegistered, WriterAdmitted
from esper_events.registry_rules import RegisteredRun
from esper_events.verify import verify_path
from support.log_runs import (
    UserServer,
    ended,
    plateau,
    sealed,
    started,
    user_server,
    wait_until,
)


def begin(run_dir: Path, log_id: str, workspace: Workspace, nats: str | None = None) -> EventLog:
    log = open_run_log(run_dir, log_id=log_id, workspace=workspace, nats=nats)
    certificate = workspace.credentials().certificate
    log.append(replace(started(workspace.key(), log_id), certificate=certificate), plateau(1))
    return log


def registered(workspace: Workspace, nats: str | None = None) -> dict[str, RegisteredRun]:
    with open_registry(workspace, nats) as registry:
        registry.refresh()
        return dict(registry.runs)


def test_a_run_is_registered_as_it_begins_and_its_end_is_recorded(
    tmp_path: Path, workspace: Workspace
) -> None:
    log = begin(tmp_path / "run", "r", workspace)
    wait_until(lambda: "r" in registered(workspace))
    log.append(ended())
    log.close()
    run = registered(workspace)["r"]
    assert (run.events, run.trainer) == (3, workspace.key().public)
    assert run.heads[-1].note() == (tmp_path / "run" / "checkpoint").read_bytes()
    assert workspace.run_directory("r") == tmp_path / "run"


def test_a_run_that_goes_on_is_registered_once(tmp_path: Path, workspace: Workspace) -> None:
    begin(tmp_path / "run", "r", workspace).close()
    log = resume_run_log(tmp_path / "run", workspace=workspace)
    log.append(plateau(2), ended())
    log.close()
    with open_registry(workspace) as registry:
        registry.refresh()
        events = [record.event for record in registry.records()]
    assert sum(isinstance(event, RunRegistered) for event in events) == 1
    assert registry.runs["r"].events == 4


def test_a_server_that_was_away_is_told_by_a_repair(
    server: UserServer, tmp_path: Path, workspace: Workspace
) -> None:
    server.kill()
    log = begin(tmp_path / "run", "r", workspace, server.url)
    log.append(ended())
    assert log.close().behind
    server.start()
    assert not registered(workspace, server.url)
    repair_replica(tmp_path / "run", workspace, server.url)
    assert registered(workspace, server.url)["r"].events == 3


def test_a_server_that_comes_back_is_told(
    server: UserServer, tmp_path: Path, workspace: Workspace
) -> None:
    server.kill()
    log = begin(tmp_path / "run", "r", workspace, server.url)
    server.start()
    wait_until(lambda: "r" in registered(workspace, server.url), 20)
    log.close()


def test_a_key_that_is_not_admitted_does_not_stop_its_run(
    server: UserServer, tmp_path: Path, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    begin(tmp_path / "one", "one", workspace, server.url).close()
    stranger = Workspace(tmp_path / "stranger")
    with caplog.at_level(logging.WARNING, "esper.log"):
        log = begin(tmp_path / "two", "two", stranger, server.url)
        log.append(ended())
        assert log.close().behind == 0
    told = [r.message for r in caplog.records if "not on record in the registry" in r.message]
    assert len(told) == 1
    assert "may not write in the registry" in told[0]
    assert list(registered(stranger, server.url)) == ["one"]


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Workspace, Workspace]:
    """Two workspaces whose keys one root certifies."""
    one, two = (Workspace(tmp_path / name) for name in ("one", "two"))
    one.keys.create(ROOT)
    for suffix in (".key", ".pub"):
        shutil.copy(one.keys.path / f"{ROOT}{suffix}", two.keys.path)
    for place in (one, two):
        place.keys.create(TRAINER)
        place.keys.certify()
    return one, two


def test_a_run_that_another_takes_over_is_one_run_to_the_registry(
    server: UserServer, tmp_path: Path, machines: tuple[Workspace, Workspace]
) -> None:
    """What the first writer's journal has beyond the server's copy was never recorded: its head
    would be that of a history that is none."""
    one, two = machines
    first = begin(tmp_path / "first", "r", one, server.url)
    assert first.flush(10)
    wait_until(lambda: registered(one, server.url))
    server.kill()
    first.append(plateau(2), plateau(3), plateau(4), plateau(5))
    assert first.flush(10)
    first.close()
    assert read_checkpoint(tmp_path / "first").checkpoint.size >= 6
    server.start()
    lease = Lease(1, "two", "r")
    second = take_over_run_log(
        tmp_path / "second", lease, workspace=two, nats=server.url, accept_unproved=True
    )
    second.append(plateau(8), ended())
    assert second.flush(10)
    assert second.close().behind == 0
    run = registered(two, server.url)["r"]
    assert run.trainer == one.key().public
    assert run.heads[-1].is_signed_by(two.key().public)
    assert verify_path(tmp_path / "second", registry={"r": run}).ok
    assert "rewritten or forked" in verify_path(tmp_path / "first", registry={"r": run}).message


def test_keys_of_one_root_share_a_registry(
    server: UserServer, tmp_path: Path, machines: tuple[Workspace, Workspace]
) -> None:
    one, two = machines
    for place in machines:
        begin(tmp_path / f"run-{place.path.name}", place.path.name, place, server.url).close()
    assert list(registered(one, server.url)) == ["one", "two"]
    with open_registry(two, server.url) as registry:
        registry.refresh()
        assert any(isinstance(record.event, WriterAdmitted) for record in registry.records())


NO_REGISTRY = """
accounts { A { jetstream: enabled, users: [ { user: ann, password: secret, permissions: {
  publish: { deny: ["$JS.API.STREAM.*.ESPER_REGISTRY", "esper.registry"] } } } ] } }
"""


def test_an_account_that_may_have_no_registry_has_its_run(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not permitted is not answered either: the run's copy is held up once, and its end is
    not."""
    asked: list[int] = []

    def ask(registrar: Registrar, held: int) -> None:
        asked.append(held)
        tell(registrar, held)

    tell = Registrar._tell
    monkeypatch.setattr(Registrar, "_tell", ask)
    (tmp_path / "nats").mkdir()
    for server in user_server(tmp_path / "nats", NO_REGISTRY):
        url = server.url.replace("//", "//ann:secret@")
        log = begin(tmp_path / "run", "r", workspace, url)
        wait_until(lambda: asked)
        log.append(ended())
        assert log.close(60).behind == 0
    assert len(asked) == 1


class Copy(MemoryStore):
    """A server's copy of a run, beside which there is a registry or none that answers."""

    def __init__(self, segments: list[bytes]) -> None:
        super().__init__(segments)
        self.registry: list[bytes] = []
        self.asked = 0
        self.away = False

    def beside(self, log: str, create: bool) -> MemoryStore:
        self.asked += 1
        if self.away:
            raise StoreUnavailableError("away")
        store = MemoryStore(self.registry)
        store.refresh = lambda: store.count  # type: ignore[attr-defined]
        return store


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registrar that is made after this waits for nothing."""
    monkeypatch.setattr(registry_module, "_UPDATE_SECONDS", 0.0)
    monkeypatch.setattr(registry_module, "_RETRY_SECONDS", 0.0)


@pytest.fixture
def registrar(tmp_path: Path, key: SigningKey) -> Registrar:
    journal = MemoryStore(sealed(key, 5))
    seen = SeenSegments(tmp_path / "seen")
    write_checkpoint(tmp_path, Checkpoint("r", 5, bytes(32)).sign(key))
    return Registrar("server", tmp_path, journal, lambda: Signer(key, None), seen)


def test_a_head_waits_until_the_server_has_all_that_it_counts(
    registrar: Registrar, key: SigningKey
) -> None:
    copy = Copy(sealed(key, 5)[:4])
    registrar.level(copy, last=True)
    assert registrar.failure is None
    assert len(copy.registry) == 1, "the run is registered, without a head"
    full = Copy(sealed(key, 5))
    full.registry = copy.registry
    registrar.level(full, last=True)
    assert len(full.registry) == 2


def test_the_registry_is_asked_now_and_then_only(registrar: Registrar, key: SigningKey) -> None:
    copy = Copy(sealed(key, 5))
    for _ in range(5):
        registrar.level(copy, last=False)
    assert (copy.asked, len(copy.registry)) == (1, 1)


def test_what_cannot_be_told_now_is_told_later(
    hurried: None, registrar: Registrar, key: SigningKey
) -> None:
    copy = Copy(sealed(key, 5))
    copy.away = True
    registrar.level(copy, last=False)
    assert isinstance(registrar.failure, StoreUnavailableError)
    copy.away = False
    registrar.level(copy, last=False)
    assert registrar.failure is None
    assert len(copy.registry) == 1


def test_another_run_under_the_same_id_is_not_registered(
    registrar: Registrar, key: SigningKey, tmp_path: Path
) -> None:
    copy = Copy(sealed(key, 5))
    registrar.level(copy, last=True)
    stranger = SigningKey.generate()
    other = Registrar(
        "server",
        tmp_path,
        MemoryStore(sealed(stranger, 5)),
        lambda: Signer(key, None),
        SeenSegments(tmp_path / "seen"),
    )
    other.level(copy, last=True)
    assert isinstance(other.failure, ConflictError)
    assert "another run is registered as r" in str(other.failure)
