"""What the registry finds of runs that were cut, rolled back, rewritten or deleted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from esper.cli import failures
from esper.cli.main import esper as group
from esper.log.connection import Connection
from esper.log.damaged import STREAMS
from esper.log.endpoint import Endpoint
from esper.log.jetstream import JetStreamStore
from esper.log.journal import JournalStore
from esper.log.keyring import ROOT
from esper.log.locks import FileLock
from esper.log.registry import open_registry
from esper.log.run import open_run_log
from esper.log.workspace import Workspace
from esper.log.writer import SegmentWriter
from esper_events.codec import encode_event
from esper_events.command import main as auditor
from esper_events.framing import JOURNAL, read_frames
from esper_events.keys import SigningKey
from esper_events.registry import WriterRevoked
from esper_events.revocation import encode_revocation, revoke
from support.log_runs import UserServer, ended, plateau, started, user_server
from support.registries import registered


@pytest.fixture
def server(tmp_path: Path) -> Iterator[UserServer]:
    directory = tmp_path / "nats"
    directory.mkdir()
    yield from user_server(directory)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("ESPER_WORKSPACE", str(tmp_path / "workspace"))
    return Workspace()


class Told:
    """Runs the command and keeps what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], server: UserServer) -> None:
        self.capsys = capsys
        self.nats = ["--nats", server.url]

    def __call__(self, *arguments: object) -> tuple[int, str]:
        code = failures.run(group, [*map(str, arguments), *self.nats])
        out, err = self.capsys.readouterr()
        return code, out + err

    def json(self, *arguments: object) -> dict[str, object]:
        found: dict[str, object] = json.loads(self(*arguments, "--json")[1])
        return found


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], server: UserServer) -> Told:
    return Told(capsys, server)


def train(run_dir: Path, workspace: Workspace, server: UserServer) -> Path:
    """A run of six events, named as its directory; beside it ``early``, what it was at three."""
    log = open_run_log(run_dir, log_id=run_dir.name, workspace=workspace, nats=server.url)
    log.append(started(workspace.key(), run_dir.name), plateau(1))
    assert log.flush(10)
    log.append(plateau(2))
    assert log.flush(10)
    early = run_dir.with_name(f"{run_dir.name}-early")
    shutil.copytree(run_dir, early)
    (early / "checkpoint").unlink(missing_ok=True)
    log.append(plateau(3), plateau(4), ended(4))
    assert log.close().behind == 0
    return early


@pytest.fixture
def run(tmp_path: Path, workspace: Workspace, server: UserServer) -> Path:
    train(tmp_path / "digits", workspace, server)
    return tmp_path / "digits"


@pytest.fixture
def early(run: Path) -> Path:
    return run.with_name("digits-early")


def test_a_registered_run_holds(run: Path, told: Told, workspace: Workspace) -> None:
    code, line = told("verify", run, "--registry")
    assert code == 0
    assert "ok: whole: 6 events" in line
    assert "registered, the first 6 as the registry has seen them" in line
    assert "not excluded" not in line
    row = {"run": "digits", "events": 6, "state": "completed", "fault": None}
    key = workspace.key().public.fingerprint
    runs = told.json("runs")["runs"]
    assert runs == [{**row, "trainer": key, "directory": str(run)}]
    code, line = told("runs")
    assert code == 0
    assert line.splitlines()[1].split() == ["digits", key[:20], "6", "completed", str(run)]


def test_a_run_that_was_rolled_back_with_its_checkpoint_is_found(early: Path, told: Told) -> None:
    code, line = told("verify", early, "--registry")
    assert code == 1
    assert "ends with 3 events, but the registry has seen 6: it was cut or rolled back" in line
    assert failures.run(group, ["verify", str(early)]) == 0, "without the registry it holds"


def test_a_run_that_was_written_anew_from_its_middle_is_found(
    early: Path, told: Told, workspace: Workspace
) -> None:
    journal = JournalStore(early / JOURNAL.parent)
    writer = SegmentWriter(journal, workspace.key(), "digits", early)
    writer.write([encode_event(event) for event in (plateau(7), plateau(8), ended(8))])
    journal.close()
    code, line = told("verify", early, "--registry")
    assert code == 1
    assert "the first 6 events are not those that the registry has seen" in line
    assert "rewritten or forked" in line


def test_another_run_under_the_same_name_is_found(
    run: Path, told: Told, workspace: Workspace, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    journal = JournalStore(other / JOURNAL.parent)
    writer = SegmentWriter(journal, workspace.key(), "digits")
    writer.write([encode_event(started(workspace.key(), "digits")), encode_event(ended())])
    journal.close()
    code, line = told("verify", other, "--registry")
    assert code == 1
    assert "another run than the registered one: its first segment is" in line


def test_a_run_that_was_never_registered_is_not_taken_for_one(
    run: Path, told: Told, workspace: Workspace, tmp_path: Path
) -> None:
    journal = JournalStore(tmp_path / "hidden" / JOURNAL.parent)
    writer = SegmentWriter(journal, workspace.key(), "hidden")
    writer.write([encode_event(started(workspace.key(), "hidden")), encode_event(ended())])
    journal.close()
    code, line = told("verify", tmp_path / "hidden", "--registry")
    assert code == 1
    assert "whole, but the registry names no run hidden" in line


def test_a_run_that_was_deleted_everywhere_is_missed(
    run: Path, early: Path, told: Told, workspace: Workspace, server: UserServer
) -> None:
    train(run.with_name("kept"), workspace, server)
    shutil.rmtree(run)
    administrator = Connection(Endpoint(server.url))
    administrator.call(lambda: administrator.js.delete_stream("ESPER_RUN_digits"))
    code, line = told("verify", "--registry")
    assert code == 1
    assert "FAILED: 1 of 2 runs" in line
    assert "digits: FAILED: the server has no copy of it any more: 6 events were there" in line
    assert "kept: ok: 6 events, ended (completed)" in line
    assert told.json("verify", "--registry")["ok"] is False
    code, line = told("runs")
    assert code == 0
    assert "MISSING" in line
    # A stream of its name with less in it is no copy either, nor is one that was emptied.
    store = JetStreamStore(administrator, "digits")
    assert "no copy of it any more" in told("verify", "--registry")[1]
    with (early / JOURNAL).open("rb") as file:
        for position, (_, segment) in enumerate(read_frames(file)):
            store.append(position, segment)
    code, line = told("verify", "--registry")
    assert code == 1
    assert "digits: FAILED: the log ends with 3 events, but the registry has seen 6" in line
    administrator.close()


def test_an_auditor_leaves_no_trace_on_the_server(
    told: Told, workspace: Workspace, server: UserServer
) -> None:
    code, line = told("verify", "--registry")
    assert code == 0
    assert "ok: 0 runs; the registry itself is whole: 0 events" in line
    assert told("runs") == (0, f"no runs in the registry of {server.url}\n")
    administrator = Connection(Endpoint(server.url))
    assert administrator.call(administrator.js.streams_info) == []
    administrator.close()


def test_a_registry_that_this_workspace_sees_first_is_said_to_be_that(
    run: Path, told: Told, tmp_path: Path
) -> None:
    _, line = told("verify", run, "--registry", "--workspace", tmp_path / "auditor")
    assert "had seen none before: that later ones were taken back is not excluded" in line
    _, line = told("verify", "--registry", "--workspace", tmp_path / "auditor")
    assert "holds all that this workspace has seen of it" in line
    assert "never registered" in line


def test_a_registry_that_was_deleted_with_its_runs_is_missed(
    run: Path, told: Told, workspace: Workspace, server: UserServer
) -> None:
    administrator = Connection(Endpoint(server.url))
    administrator.call(lambda: administrator.js.delete_stream("ESPER_REGISTRY"))
    administrator.close()
    for arguments in (["runs"], ["verify", "--registry"], ["verify", run, "--registry"]):
        code, line = told(*arguments)
        assert code == 1
        assert "the registry is gone; this workspace has seen" in line


def test_an_auditor_needs_no_server(
    run: Path, early: Path, workspace: Workspace, server: UserServer, tmp_path: Path
) -> None:
    registry = tmp_path / "kept"
    shutil.copy(workspace.registry_file(server.url), registry)
    server.kill()

    def offline(path: Path) -> Result:
        return CliRunner().invoke(auditor, [str(path), "--registry", str(registry)])

    found = offline(run)
    assert (found.exit_code, "the first 6 as the registry has seen" in found.output) == (0, True)
    found = offline(early)
    assert (found.exit_code, "cut or rolled back" in found.output) == (1, True)
    data = registry.read_bytes()
    registry.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    found = offline(run)
    assert (found.exit_code, "the signature does not fit" in found.output) == (2, True)


def test_a_key_is_admitted_by_who_began_the_registry(
    tmp_path: Path, told: Told, workspace: Workspace, server: UserServer
) -> None:
    other = Workspace(tmp_path / "other")
    key = tmp_path / "other.pub"
    other.key().public.save(key)
    code, line = told("runs", "--admit", key)
    assert (code, "its first run begins it" in line) == (3, True)
    train(tmp_path / "digits", workspace, server)
    train(tmp_path / "refused", other, server)
    code, line = told("runs", "--admit", key, "--workspace", other.path)
    assert (code, "admits writers to the registry, and that key is not in" in line) == (3, True)
    for _ in range(2):
        assert told("runs", "--admit", key)[0] == 0
    train(tmp_path / "welcome", other, server)
    runs = told.json("runs")["runs"]
    assert isinstance(runs, list)
    assert [run["run"] for run in runs] == ["digits", "welcome"]


def test_a_key_that_its_root_took_back_registers_no_more(
    tmp_path: Path, told: Told, workspace: Workspace, server: UserServer
) -> None:
    workspace.keys.create(ROOT)
    workspace.keys.certify()
    train(tmp_path / "digits", workspace, server)
    root, other = workspace.keys.load(ROOT), SigningKey.generate().public
    other.save(tmp_path / "other.pub")
    assert told("runs", "--admit", tmp_path / "other.pub")[0] == 0
    (tmp_path / "revocation").write_bytes(encode_revocation(revoke(root, other)))
    for _ in range(2):
        assert told("runs", "--revoke", tmp_path / "revocation")[0] == 0
    with open_registry(workspace, server.url) as registry:
        registry.refresh()
        assert not registry.admits(other)
        assert sum(isinstance(r.event, WriterRevoked) for r in registry.records()) == 1
    stranger = revoke(SigningKey.generate(), other)
    (tmp_path / "revocation").write_bytes(encode_revocation(stranger))
    assert told("runs", "--revoke", tmp_path / "revocation")[0] == 0, "it was done before"
    (tmp_path / "revocation").write_bytes(b"none")
    code, line = told("runs", "--revoke", tmp_path / "revocation")
    assert (code, "--revoke" in line) == (2, True)


def test_what_the_registry_lost_is_given_back(
    run: Path, told: Told, workspace: Workspace, server: UserServer
) -> None:
    code, line = told("repair", "--registry")
    assert (code, "registry: nothing was missing" in line) == (0, True)
    administrator = Connection(Endpoint(server.url))
    administrator.call(lambda: administrator.js.delete_stream("ESPER_REGISTRY"))
    code, line = told("verify", "--registry")
    assert (code, "`esper repair --registry` gives back" in line) == (1, True)
    code, line = told("repair", "--registry")
    assert (code, "segments sent" in line) == (0, True)
    assert told("verify", "--registry")[0] == 0
    # What others began in its place is not overwritten.
    administrator.call(lambda: administrator.js.delete_stream("ESPER_REGISTRY"))
    administrator.close()
    with open_registry(Workspace(workspace.path.with_name("another")), server.url) as other:
        other.update(lambda _: [registered(SigningKey.generate(), "new")])
    code, line = told("repair", "--registry")
    assert (code, "it was begun anew by others, and nothing was sent" in line) == (1, True)


def test_a_damaged_registry_is_put_aside_and_sent_again(
    tmp_path: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two", "three", "four"):
        log = open_run_log(tmp_path / name, log_id=name, workspace=workspace)
        log.append(started(workspace.key(), name), ended())
        log.close()
    server = workspace.attach_server()
    with FileLock(server.directory / "server.lock") as stopped:
        assert stopped.acquire(timeout=20)
        block = server.directory / STREAMS / "ESPER_REGISTRY" / "msgs" / "1.blk"
        data = bytearray(block.read_bytes())
        data[len(data) // 2] ^= 1
        block.write_bytes(data)
    assert failures.run(group, ["verify", "--registry"]) == 1
    assert failures.run(group, ["repair", "--registry"]) == 0
    assert "its files lie in" in capsys.readouterr().out
    assert failures.run(group, ["verify", "--registry"]) == 0
    assert "ok: 4 runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["repair"], "name the directory of a run"),
        (["repair", ".", "--registry"], "or ask for the --registry"),
        (["verify"], "name a run or a proof"),
        (["verify", "--registry", "--fingerprint", "x"], "are for a run: name it"),
        (["verify", ".", "--workspace", "x"], "say where the --registry is"),
        (["runs", "--nats", "http://x"], "--nats"),
    ],
)
def test_bad_usage(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert failures.run(group, arguments) == 2
    assert reason in capsys.readouterr().err


def test_an_unreachable_server_is_one_line(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper.log.shared_log._RETRY_SECONDS", 100.0)
    assert failures.run(group, ["runs", "--nats", "nats://127.0.0.1:1"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot connect" in line


def test_the_embedded_server_has_a_registry_too(
    tmp_path: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    log = open_run_log(tmp_path / "run", log_id="here", workspace=workspace)
    log.append(started(workspace.key(), "here"), ended())
    log.close()
    assert failures.run(group, ["verify", str(tmp_path / "run"), "--registry"]) == 0
    assert failures.run(group, ["runs"]) == 0
    assert "here" in capsys.readouterr().out
    with open_registry(workspace) as registry:
        registry.verify()
