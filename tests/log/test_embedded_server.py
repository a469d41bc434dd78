"""The workspace's server: shared, private, durable, and gone when its last run is gone."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esper.log.connection import Connection
from esper.log.durability import prove_embedded
from esper.log.endpoint import Endpoint
from esper.log.errors import LogError, RefusedError, ServerError, StoreUnavailableError
from esper.log.jetstream import JetStreamStore
from esper.log.server import EmbeddedServer, find_binary
from esper.log.workspace import Workspace
from esper_events.keys import SigningKey
from support.log_runs import is_alive, published, python, sealed, wait_until

ATTACHED = """
import sys
from pathlib import Path
from esper.log.server import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]))
server.endpoint()
print("attached", flush=True)
sys.stdin.readline()
server.close()
print("detached", flush=True)
sys.stdin.readline()
"""


def attached(directory: Path) -> subprocess.Popen[str]:
    """A process that holds a share in the server, until it reads a line or dies."""
    process = python(ATTACHED, str(directory))
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "attached\n", process.communicate()[1]
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def pids(directory: Path) -> tuple[int, int]:
    """Server and supervisor."""
    found = published(directory)
    return int(found["pid"]), int(found["supervisor"])


def gone(*processes: int) -> bool:
    return not any(is_alive(pid) for pid in processes)


def test_concurrent_runs_share_one_server_that_survives_the_first_to_end(tmp_path: Path) -> None:
    directory = tmp_path / "server"
    runs = [python(ATTACHED, str(directory)) for _ in range(3)]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "attached\n"
    server, supervisor = pids(directory)
    end(runs[0])
    end(runs[1])
    time.sleep(0.3)
    assert is_alive(server)
    assert pids(directory) == (server, supervisor)
    runs[2].communicate("\n\n")
    wait_until(lambda: gone(server, supervisor))
    assert not (directory / "endpoint.json").exists()


def test_the_server_ends_when_every_run_was_killed(tmp_path: Path) -> None:
    runs = [attached(tmp_path), attached(tmp_path)]
    server, supervisor = pids(tmp_path)
    for run in runs:
        end(run)
    wait_until(lambda: gone(server, supervisor))


def test_the_server_does_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    run = attached(tmp_path)
    server, supervisor = pids(tmp_path)
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: gone(server, supervisor))
    end(run)


def test_the_server_ends_when_runs_and_supervisor_are_killed_at_once(tmp_path: Path) -> None:
    runs = [attached(tmp_path), attached(tmp_path)]
    server, supervisor = pids(tmp_path)
    for pid in (*(run.pid for run in runs), supervisor):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: gone(server, supervisor))
    for run in runs:
        run.communicate()


def test_a_killed_server_is_started_again_and_holds_what_it_held(
    tmp_path: Path, key: SigningKey
) -> None:
    segments = sealed(key, 3)
    server = EmbeddedServer(tmp_path)
    store = JetStreamStore(server.endpoint(), "r")
    store.append(0, segments[0])
    first, supervisor = pids(tmp_path)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: gone(first, supervisor))
    with pytest.raises(StoreUnavailableError):
        store.append(1, segments[1])
    store.close()
    again = JetStreamStore(server.endpoint(), "r")
    assert list(again.read()) == segments[:1]
    again.close()
    second, supervisor = pids(tmp_path)
    assert second != first
    server.close()
    wait_until(lambda: gone(second, supervisor))


def test_a_run_that_arrives_while_the_server_ends_gets_a_fresh_one(tmp_path: Path) -> None:
    for _ in range(5):
        server = EmbeddedServer(tmp_path)
        prove_embedded(server.endpoint())
        server.close()
    wait_until(lambda: not (tmp_path / "endpoint.json").exists())


@pytest.mark.parametrize(
    "name", ["with spaces", "ünï ☃", "a'b\"c\\d$x{}", "line\nbreak", os.fsdecode(b"\xff")]
)
def test_a_workspace_may_have_any_name(tmp_path: Path, name: str) -> None:
    server = EmbeddedServer(tmp_path / name)
    try:
        assert server.endpoint().url.startswith("nats://127.0.0.1:")
    finally:
        server.close()


def test_only_the_owner_can_read_what_lets_one_in(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "server")
    endpoint = server.endpoint()
    files = [path for path in (tmp_path / "server").iterdir() if path.is_file()]
    assert {"endpoint.json", "launch.json", "server.conf"} <= {path.name for path in files}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "server").stat().st_mode) == 0o700
    assert endpoint.url.startswith("nats://127.0.0.1:")
    assert str(endpoint.seed) not in repr(endpoint)
    with pytest.raises(StoreUnavailableError, match="Authorization"):
        Connection(Endpoint(endpoint.url))
    server.close()


def test_every_start_has_fresh_keys(tmp_path: Path) -> None:
    seeds = set()
    for _ in range(2):
        server = EmbeddedServer(tmp_path)
        endpoint = server.endpoint()
        seeds |= {endpoint.seed, endpoint.system_seed}
        pid = pids(tmp_path)[0]
        server.close()
        wait_until(lambda pid=pid: gone(pid))
    assert len(seeds) == 4


def test_a_client_can_neither_delete_nor_change_a_log(tmp_path: Path, key: SigningKey) -> None:
    server = EmbeddedServer(tmp_path)
    endpoint = server.endpoint()
    store = JetStreamStore(endpoint, "r")
    store.append(0, sealed(key, 1)[0])
    name = "ESPER_RUN_r"
    connection = Connection(endpoint, timeout=0.3)
    js = connection.js
    for work in (
        lambda: js.delete_stream(name),
        lambda: js.purge_stream(name),
        lambda: js.delete_msg(name, 1),
        lambda: js.update_stream(name=name, subjects=["esper.run.r"], max_msgs=1),
    ):
        with pytest.raises((StoreUnavailableError, RefusedError)):
            connection.call(work)
    connection.close()
    assert list(store.read()) == sealed(key, 1)
    store.close()
    server.close()


def test_a_binary_that_does_not_start_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "nats-server"
    broken.write_text("#!/bin/sh\necho this machine is too old >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("ESPER_NATS_SERVER", str(broken))
    server = EmbeddedServer(tmp_path / "server")
    with pytest.raises(ServerError, match="too old .* ended with status 3"):
        server.endpoint()
    server.close()
    monkeypatch.setenv("ESPER_NATS_SERVER", str(tmp_path / "none"))
    with pytest.raises(ServerError, match="not an executable"):
        find_binary()


def test_the_workspace_creates_its_key_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from esper.log.workspace import Workspace;"
        "print(Workspace(Path(sys.argv[1])).key().public.fingerprint)"
    )
    racers = [python(code, str(tmp_path / "area")) for _ in range(3)]
    found = {racer.communicate(timeout=20)[0] for racer in racers}
    assert found == {Workspace(tmp_path / "area").key().public.fingerprint + "\n"}
    path = tmp_path / "area" / "keys" / "trainer.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(LogError, match="chmod 600"):
        Workspace(tmp_path / "area").key()


def test_the_workspace_is_named_by_argument_environment_or_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ESPER_WORKSPACE", raising=False)
    assert Workspace().path == tmp_path / ".esper"
    monkeypatch.setenv("ESPER_WORKSPACE", str(tmp_path / "elsewhere"))
    assert Workspace().path == tmp_path / "elsewhere"
    assert Workspace(tmp_path / "here").path == tmp_path / "here"


def test_the_supervisor_needs_nothing_but_the_standard_library() -> None:
    from esper.log import supervisor

    code = "import runpy, sys; runpy.run_path(sys.argv[1]); print('nats' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, supervisor.__file__],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
