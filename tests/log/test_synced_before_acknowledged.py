"""Nothing is acknowledged before it is on disk: file, names on the way, and objects that it names.

The order is that of the process's own calls, written down by a library that is loaded before libc
(``tests/support/order.c``).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.log_runs import ROOT

SOURCE = ROOT / "tests" / "support" / "order.c"

RUN = """
import os, sys
from pathlib import Path
from esper.log.event_log import EventLog
from esper.log.journal import JournalStore
from esper_events.codec import encode_event
from esper_events.events import ControllerConsulted
from esper_events.keys import SigningKey
from support.log_runs import plateau, started
run_dir, key = Path(sys.argv[1]), SigningKey.generate()
log = EventLog(JournalStore(run_dir / "journal"), key, "r", run_dir=run_dir)
def acknowledged(ticket, name=""):
    if not ticket.wait(60):
        raise SystemExit(f"not acknowledged: {log.failure}")
    os.write(1, f"acknowledged {ticket.first_index} {name}".encode())
acknowledged(log.append(started(key)))
for step in range(3):
    acknowledged(log.append(plateau(step), plateau(step)))
name = log.keep(b"what the controller saw")
event = ControllerConsulted(time=0.0, step=9, controller="c", policy=name, consultation=name)
acknowledged(log.append(event), name)
log.close()
os.write(1, b"closed")
log = EventLog(JournalStore(run_dir / "journal"), key, "r", run_dir=run_dir)
acknowledged(log.append(plateau(10)))
log.close()
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that writes the order down; a machine that tests the project has a compiler."""
    library = tmp_path_factory.mktemp("order") / "order.so"
    compiler = os.environ.get("CC", "cc")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, SOURCE, "-ldl"],
        check=True,
    )
    return library


def ordered(shim: Path, directory: Path, code: str) -> list[tuple[str, str]]:
    """What a process that runs ``code`` did, in order: calls and paths."""
    trace = directory / "trace"
    path = os.pathsep.join([str(ROOT), str(ROOT / "events"), str(ROOT / "tests")])
    given = {"LD_PRELOAD": str(shim), "ORDER_TRACE": str(trace), "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, str(directory / "runs" / "new" / "run")],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = (line.partition("\t") for line in trace.read_text().splitlines())
    return [(call, what) for call, _, what in lines]


@dataclass
class Disk:
    """What a loss of power could still take: by the process's own calls."""

    unsynced: set[str] = field(default_factory=set)
    """Files with bytes, and directories with names, that were not synced since."""
    written: set[str] = field(default_factory=set)

    def follow(self, call: str, path: str) -> None:
        if call == "write":
            self.unsynced.add(path)
            self.written.add(path)
        elif call == "name":
            self.unsynced.add(str(Path(path).parent))
        elif call == "sync":
            self.unsynced.discard(path)

    def at_risk(self, path: Path, root: Path) -> list[str]:
        """Of ``path`` and the directories between it and ``root``, what is not synced."""
        way = [path, *(parent for parent in path.parents if parent.is_relative_to(root))]
        return [str(place) for place in way if str(place) in self.unsynced]


def moments(trace: list[tuple[str, str]]) -> Iterator[tuple[str, Disk]]:
    """What was said, and how the disk stood then."""
    disk = Disk()
    for call, what in trace:
        if call == "said":
            yield what, disk
            disk.written.clear()
        else:
            disk.follow(call, what)


def faults(trace: list[tuple[str, str]], root: Path) -> list[str]:
    """Acknowledgements that came too early."""
    run_dir = root / "runs" / "new" / "run"
    segments, found = run_dir / "journal" / "segments", []
    for said, disk in moments(trace):
        word, *rest = said.split()
        if word != "acknowledged":
            continue
        if str(segments) not in disk.written:
            found.append(f"{said}: nothing was written")
        found += [f"{said}: {path} not synced" for path in disk.at_risk(segments, root)]
        for name in rest[1:]:
            found += [
                f"{said}: {p} not synced" for p in disk.at_risk(run_dir / "objects" / name, root)
            ]
    return found


def test_every_acknowledgement_follows_the_sync_of_what_it_is_of(
    shim: Path, tmp_path: Path
) -> None:
    trace = ordered(shim, tmp_path, RUN)
    assert [said.split()[0] for said, _ in moments(trace)] == [
        *["acknowledged"] * 5,
        "closed",
        "acknowledged",
    ]
    assert faults(trace, tmp_path) == []


WITHOUT = {
    "the file": ("os.fsync = lambda fd: None", "journal/segments not synced"),
    "directories": (
        "import esper.log.journal as j; j.sync_way = lambda path: None",
        "run/journal not synced",
    ),
    "objects": (
        "import esper_events.files as f; f.os = type(os)('os'); f.os.__dict__.update(os.__dict__); "
        "f.os.fsync = lambda fd: None",
        "objects",
    ),
}


@pytest.mark.parametrize("left_out", WITHOUT)
def test_a_sync_that_is_left_out_is_seen(shim: Path, tmp_path: Path, left_out: str) -> None:
    patch, fault = WITHOUT[left_out]
    code = RUN.replace("run_dir, key =", f"{patch}\nrun_dir, key =", 1)
    found = faults(ordered(shim, tmp_path, code), tmp_path)
    assert any(fault in one for one in found), found
