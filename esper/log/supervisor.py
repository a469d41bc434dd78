"""The process that keeps a workspace's nats-server: alive while a run is attached, no longer.

Run as a script and by itself: it imports the standard library only, so that it starts fast and
nothing in a user's directory or environment can get into it. Every attached run holds a shared
lock on ``attached.lock``; the kernel drops it however a run dies, and the supervisor ends when it
gets the exclusive one. The server dies with the supervisor (Linux: PDEATHSIG), and inherits the
descriptor that locks ``server.lock``, so the store stays locked until the server is really gone.

    python supervisor.py DIRECTORY LOCK_DESCRIPTOR

``DIRECTORY/launch.json`` says which binary to start and what to publish to clients.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

POLL_SECONDS = 0.05
START_SECONDS = 20.0
STOP_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1


def main(directory: Path, lock: int) -> None:
    """Detach from the caller, run the server, end with the last attached run."""
    if os.fork():
        os._exit(0)
    os.setsid()
    launch = json.loads((directory / "launch.json").read_text())
    with (directory / "supervisor.log").open("a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        child = start(launch, directory, lock, log)
        try:
            publish(launch, directory, child)
            while child.poll() is None and not last_run_ended(directory):
                time.sleep(POLL_SECONDS)
        finally:
            stop(child)
            (directory / "endpoint.json").unlink(missing_ok=True)


def start(
    launch: dict[str, Any], directory: Path, lock: int, log: IO[str]
) -> subprocess.Popen[bytes]:
    """The server as a child that cannot outlive this process."""
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def die_with_parent() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

    return subprocess.Popen(
        [launch["binary"], "-c", str(directory / "server.conf")],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=directory,
        pass_fds=(lock,),
        preexec_fn=die_with_parent,  # safe: this process has one thread
    )


def publish(launch: dict[str, Any], directory: Path, child: subprocess.Popen[bytes]) -> None:
    """Wait for the server's port and tell it to clients, in a file that appears whole."""
    ports = directory / "ports" / f"{Path(launch['binary']).name}_{child.pid}.ports"
    deadline = time.monotonic() + launch["patience"]
    while (url := read_port(ports)) is None:
        if child.poll() is not None:
            raise SystemExit(f"nats-server ended with status {child.returncode} at its start")
        if time.monotonic() > deadline:
            raise SystemExit(f"nats-server told no port within {launch['patience']:g} s")
        time.sleep(0.005)
    endpoint = {**launch["endpoint"], "url": url, "pid": child.pid, "supervisor": os.getpid()}
    partial = directory / "endpoint.json.part"
    partial.write_text(json.dumps(endpoint))
    partial.chmod(0o600)
    partial.replace(directory / "endpoint.json")


def read_port(ports: Path) -> str | None:
    """The client URL in a ports file, None while that is missing or half written."""
    try:
        return str(json.loads(ports.read_text())["nats"][0])
    except (OSError, ValueError, KeyError, IndexError):
        return None


def last_run_ended(directory: Path) -> bool:
    """Whether nobody is attached; from then on until this process ends nobody can attach."""
    descriptor = os.open(directory / "attached.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    return True


def stop(child: subprocess.Popen[bytes]) -> None:
    """End the server, gently at first."""
    child.terminate()
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


if __name__ == "__main__":
    os.umask(0o077)
    main(Path(sys.argv[1]), int(sys.argv[2]))
