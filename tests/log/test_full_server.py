"""The private server's store on a full disk: the run's own log does not depend on it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from support.command import command, environment
from support.small_disk import has_namespaces, on_small_disk

WRITER = """
import json, os, resource, sys, time
from pathlib import Path
from esper.log.run import open_run_log
from esper.log.workspace import Workspace
from esper_events.events import PlateauDetected, RunStarted

place = Path(os.environ["ESPER_WORKSPACE"])
log = open_run_log(Path("run"), log_id="own", workspace=Workspace(place))
told = log.credentials
log.append(RunStarted(time=0.0, run="own", trainer_key=told.trainer_key, host_weights="", config="",
    seed=0, version="", platform={}))
deadline = time.monotonic() + 60
while log.replica_state.standing != "level" or log.replica_state.behind:
    assert time.monotonic() < deadline, log.replica_state
    time.sleep(0.01)
if sys.argv[1] == "fill":
    with (place / "filler").open("wb", buffering=0) as filler:
        try:
            while filler.write(bytes(4096)):
                pass
        except OSError:
            pass
else:  # A full disk of the server's own.
    (endpoint,) = place.rglob("endpoint.json")
    resource.prlimit(json.loads(endpoint.read_text())["pid"], resource.RLIMIT_FSIZE, (1024, 1024))
figures = {f"{n:0200}": 1.0 for n in range(100)}
tickets = [log.append(PlateauDetected(time=0.0, step=n, figures=figures)) for n in range(50)]
acknowledged = all(ticket.wait(60) for ticket in tickets)
summary = log.close(2.0)
print(json.dumps([acknowledged, str(log.failure), summary.behind > 0]))
"""


def test_the_log_goes_on_and_repair_completes_the_copy(tmp_path: Path) -> None:
    (tmp_path / "writer.py").write_text(WRITER)
    (tmp_path / "disk").mkdir()
    way = "fill" if has_namespaces() else "limit"
    written, _, repaired, verified = on_small_disk(
        tmp_path / "disk",
        environment(tmp_path / "disk"),
        disk=2048,
        largest=1 << 20,
        full=[sys.executable, "writer.py", way],
        then=[
            ["rm", "-f", "disk/filler"],
            command("repair", "run"),
            command("verify", "run"),
        ],
    )
    assert written.returncode == 0, written.stderr
    assert json.loads(written.stdout) == [True, "None", True]
    assert repaired.returncode == 0, repaired.stderr
    assert "segments sent" in repaired.stdout
    assert verified.returncode == 0, verified.stdout
