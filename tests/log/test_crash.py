"""Killed at any moment, a run loses nothing that it was told is durable, and leaves no process."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from esper.log.journal import JournalStore
from esper.log.repair import repair_replica
from esper.log.workspace import Workspace
from esper_events.verify import verify_path
from support.log_runs import is_alive, published, python, wait_until

RUN = """
import sys
from pathlib import Path
from esper.log.run import open_run_log
from esper.log.workspace import Workspace
from support.log_runs import plateau, started
area = Workspace(Path(sys.argv[1]) / "workspace")
log = open_run_log(Path(sys.argv[1]) / "run", log_id="r", workspace=area)
log.append(started(area.key()))
n = 0
while True:
    ticket = log.append(plateau(n), plateau(n))
    if n % 3 == 0 and ticket.wait(5):
        print(ticket.first_index + ticket.count, flush=True)
    n += 1
"""


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_run_keeps_what_was_acknowledged(tmp_path: Path, seed: int) -> None:
    run = python(RUN, str(tmp_path))
    assert run.stdout is not None
    run.stdout.readline()
    wait_until((tmp_path / "workspace" / "server" / "endpoint.json").exists)
    found = published(tmp_path / "workspace" / "server")
    time.sleep(random.Random(seed).uniform(0, 0.3))
    run.kill()
    acknowledged = [int(line) for line in run.communicate()[0].splitlines() if line.strip()]
    wait_until(lambda: not any(is_alive(int(found[name])) for name in ("pid", "supervisor")))

    JournalStore(tmp_path / "run" / "journal").close()
    report = verify_path(tmp_path / "run")
    assert report.ok
    assert report.events >= max(acknowledged, default=0)
    done = repair_replica(tmp_path / "run", Workspace(tmp_path / "workspace"))
    assert done.segments == report.segments


INTERRUPTED = """
import sys
from pathlib import Path
from esper.log.run import open_run_log
from esper.log.workspace import Workspace
from support.log_runs import plateau, started
area = Workspace(Path(sys.argv[1]) / "workspace")
log = open_run_log(Path(sys.argv[1]) / "run", log_id="r", workspace=area)
log.append(started(area.key())).wait(5)
while sys.argv[2] == "level" and log.replica_state.standing != "level":
    pass
log.append(plateau(1))
"""


@pytest.mark.parametrize("when", ["at once", "level"])
def test_a_run_that_forgets_to_close_its_log_exits_cleanly(tmp_path: Path, when: str) -> None:
    run = python(INTERRUPTED, str(tmp_path), when)
    out, err = run.communicate(timeout=30)
    assert (run.returncode, out, err) == (0, "", "")
    report = verify_path(tmp_path / "run")
    assert (report.ok, report.events, report.checkpoint) == (True, 2, 2)
    assert repair_replica(tmp_path / "run", Workspace(tmp_path / "workspace")).sent == 0
