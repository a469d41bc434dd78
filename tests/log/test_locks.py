"""Locks end with their holder, and only with it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from esper.log.journal import writer_lock
from esper.log.locks import FileLock
from support.log_runs import is_alive, published, python, wait_until


def test_one_exclusive_holder_or_many_that_share(tmp_path: Path) -> None:
    first, second, third = (FileLock(tmp_path / "lock") for _ in range(3))
    assert first.acquire()
    assert not second.acquire()
    assert not second.acquire(shared=True, timeout=0.02)
    first.release()
    first.release()
    assert second.acquire(shared=True)
    assert third.acquire(shared=True)
    assert not first.acquire()
    second.release()
    third.release()
    assert first.acquire()
    first.release()


FORKED = """
import os, sys, time
from pathlib import Path
from esper.log.journal import JournalStore
from esper.log.server import EmbeddedServer
journal = JournalStore(Path(sys.argv[1]) / "journal")
server = EmbeddedServer(Path(sys.argv[1]) / "server")
server.endpoint()
if os.fork() == 0:
    time.sleep(60)
else:
    print("forked", flush=True)
    time.sleep(60)
"""


def test_a_forked_worker_keeps_no_lock_of_its_killed_parent(tmp_path: Path) -> None:
    """As a data loader's workers do, when they outlive the trainer for a while."""
    run = python(FORKED, str(tmp_path))
    assert run.stdout is not None
    assert run.stdout.readline() == "forked\n"
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    server = int(published(tmp_path / "server")["pid"])
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    worker = next(pid for pid in map(int, children) if is_alive(pid))
    try:
        lock = writer_lock(tmp_path / "journal")
        wait_until(lock.acquire)
        lock.release()
        wait_until(lambda: not is_alive(server))
        assert is_alive(worker)
    finally:
        os.kill(worker, signal.SIGKILL)
        run.communicate()
