"""What the tests of the log share: events, sealed segments, and a nats-server to torment."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from esper.log.server import find_binary
from esper_events.codec import encode_event
from esper_events.events import Event, PlateauDetected, RunEnded, RunStarted
from esper_events.keys import SigningKey
from esper_events.segment import GENESIS, seal, segment_hash

ROOT = Path(__file__).resolve().parents[2]


def started(key: SigningKey, run: str = "r") -> RunStarted:
    """The first event of a run."""
    return RunStarted(
        time=1.0,
        run=run,
        trainer_key=key.public.raw,
        host_weights="",
        config="",
        seed=0,
        version="0",
        platform={},
    )


def plateau(step: int) -> PlateauDetected:
    """An event that may stand anywhere between start and end."""
    return PlateauDetected(time=2.0, step=step, figures={"loss": 0.5})


def ended(step: int = 0) -> RunEnded:
    """The last event of a run."""
    return RunEnded(
        time=3.0,
        step=step,
        outcome="completed",
        reason="",
        final_weights="",
        lattice="",
        figures={},
    )


def sealed(key: SigningKey, count: int, log: str = "r", salt: int = 0) -> list[bytes]:
    """A valid chain of ``count`` segments of one event each."""
    segments: list[bytes] = []
    previous = GENESIS
    for number in range(count):
        event: Event = plateau(number + salt) if number else started(key, log)
        segments.append(
            seal([encode_event(event)], log=log, first_index=number, previous=previous, key=key)
        )
        previous = segment_hash(segments[-1])
    return segments


def wait_until(condition: Callable[[], object], timeout: float = 10.0) -> None:
    """Poll until ``condition`` is true; fails the test when it stays false."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {timeout:g} s")
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process that can import the project."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "events"), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class UserServer:
    """A nats-server on a fixed port with its own store, which survives its restarts."""

    def __init__(self, directory: Path, extra: str = "") -> None:
        self.directory = directory
        self.port, self.monitor_port = free_port(), free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.monitor = f"http://127.0.0.1:{self.monitor_port}"
        store = directory / "store"
        (directory / "conf").write_text(
            f'listen: "127.0.0.1:{self.port}"\nhttp: "127.0.0.1:{self.monitor_port}"\n'
            f'ports_file_dir: "{directory}"\n'
            f'jetstream {{ store_dir: "{store}", sync_interval: always }}\n{extra}\n'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [str(find_binary()), "-c", str(self.directory / "conf")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ports = self.directory / f"nats-server_{self.process.pid}.ports"
        wait_until(lambda: ports.exists() and ports.read_text().endswith("}"))
        ports.unlink()

    def signal(self, number: int) -> None:
        if self.process is not None:
            os.kill(self.process.pid, number)
            if number == signal.SIGSTOP:
                wait_until(self._stopped)

    def _stopped(self) -> bool:
        """Whether every thread has: one that is still on its way could answer once more."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir() if self.process else ()
        states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks]
        return set(states) == {"T"}

    def kill(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def published(directory: Path) -> dict[str, int | str]:
    """What the embedded server in ``directory`` tells its clients."""
    found: dict[str, int | str] = json.loads((directory / "endpoint.json").read_text())
    return found


def user_server(directory: Path, extra: str = "") -> Iterator[UserServer]:
    server = UserServer(directory, extra)
    server.start()
    try:
        yield server
    finally:
        server.kill()
