"""One bit flipped in a copy of a small log: is it found, and is the copy made whole from the other?

For each bit a run and its workspace are copied, the bit is flipped in a file of the server's store
(its messages, its index, the stream's settings) or in the journal, and the run is repaired.
Afterwards both must hold the segments that were written, byte for byte. The store is taken as a
server leaves it that ended, and as one does that was killed. That flips in exports are found:
``tests/events/test_tampering.py``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from esper.log.errors import LogError
from esper.log.locks import FileLock
from esper.log.repair import repair_replica
from esper.log.run import open_run_log
from esper.log.sources import source_for
from esper.log.workspace import Workspace
from esper_events.events import PlateauDetected, RunStarted
from esper_events.framing import JOURNAL, read_frames

LOG = "flips"
STREAM = Path("server/store/jetstream/ESPER/streams/ESPER_RUN_flips")
FILES = ("msgs/1.blk", "meta.inf", "meta.sum", "msgs/index.db")
SEGMENTS_FILE = str(JOURNAL)
SEGMENTS = 4
STATES = ("ended", "killed")


@dataclass(frozen=True)
class Flip:
    """A bit of a file of the store that a server left as ``state`` says."""

    state: str
    file: str
    bit: int

    def __str__(self) -> str:
        return (
            f"{self.file} of a server that {self.state}, byte {self.bit // 8}, bit {self.bit % 8}"
        )


@dataclass(frozen=True)
class Outcome:
    """What came of it; ``problem`` is empty where the two copies are one again."""

    flip: Flip
    found: str
    problem: str = ""


def prepare(directory: Path) -> None:
    """A run in ``directory/run``, and its workspace as its server leaves it in each of `STATES`."""
    area = Workspace(directory / "ended")
    log = open_run_log(directory / "run", log_id=LOG, workspace=area)
    start = RunStarted(
        time=0.0,
        run=LOG,
        trainer_key=area.key().public.raw,
        host_weights="",
        config="",
        seed=0,
        version="0",
        platform={},
    )
    log.append(start).wait(30)
    for step in range(SEGMENTS - 1):
        log.append(PlateauDetected(time=0.0, step=step, figures={})).wait(30)
    while log.replica_state.standing != "level" or log.replica_state.behind:
        time.sleep(0.005)
    # All that was acknowledged is on disk: what is there now is what a kill would leave.
    copy_standing(area.path, directory / "killed")
    log.close()
    ended = FileLock(area.path / "server" / "server.lock")
    if not ended.acquire(timeout=30):
        raise SystemExit("the server of the prepared run does not end")
    ended.release()


def copy_standing(source: Path, target: Path) -> None:
    """Copy a directory once nothing comes and goes in it; the server still registers the run."""
    for _ in range(1000):
        try:
            shutil.copytree(source, target)
        except shutil.Error:
            shutil.rmtree(target)
            time.sleep(0.01)
        else:
            return
    raise SystemExit(f"{source} does not come to rest")


def place(directory: Path, flip: Flip) -> Path:
    """The file whose bit it is, where run and workspaces lie in ``directory``."""
    if flip.file == SEGMENTS_FILE:
        return directory / "run" / flip.file
    return directory / flip.state / STREAM / flip.file


def all_flips(directory: Path) -> list[Flip]:
    """Every bit of every file in both states."""
    kinds = [Flip(state, file, 0) for state in STATES for file in FILES]
    kinds.append(Flip("ended", SEGMENTS_FILE, 0))
    return [
        Flip(kind.state, kind.file, bit)
        for kind in kinds
        if (path := place(directory, kind)).exists()
        for bit in range(8 * path.stat().st_size)
    ]


def trial(directory: Path, flip: Flip) -> Outcome:
    """Flip the bit in a copy of what `prepare` left in ``directory``, and repair."""
    with tempfile.TemporaryDirectory(prefix="flip-", ignore_cleanup_errors=True) as name:
        area, run_dir = Workspace(Path(name) / flip.state), Path(name) / "run"
        shutil.copytree(directory / flip.state, area.path)
        shutil.copytree(directory / "run", run_dir)
        path = place(Path(name), flip)
        data = bytearray(path.read_bytes())
        data[flip.bit // 8] ^= 1 << flip.bit % 8
        path.write_bytes(data)
        try:
            done = repair_replica(run_dir, area)
        except LogError as error:
            return Outcome(flip, "refused", f"not repaired: {error}")
        found = (
            "the stream made anew"
            if done.replaced
            else "the journal made anew"
            if done.rebuilt
            else "made good by the server"
        )
        if segments_of(run_dir) != segments_of(directory / "run"):
            return Outcome(flip, found, "the journal is not what it was")
        if copy_in(area) != segments_of(run_dir):
            return Outcome(flip, found, "the server's copy differs from the journal")
        return Outcome(flip, found)


def segments_of(run_dir: Path) -> list[bytes]:
    """What the journal holds."""
    with (run_dir / SEGMENTS_FILE).open("rb") as file:
        return [segment for _, segment in read_frames(file)]


def copy_in(area: Workspace) -> list[bytes]:
    """What the server of ``area`` holds, after it was started once more."""
    source = source_for(LOG, area, None)
    try:
        store = source.connect()
        try:
            return list(store.read())
        finally:
            store.close()
    finally:
        source.close()


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; 1 where a flip was not made good."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--every", type=int, default=1, help="take every so many-th bit")
    parser.add_argument("--first", type=int, default=0, help="the bit to begin with")
    parser.add_argument("--jobs", type=int, default=4, help="servers at a time")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="flips-") as name:
        directory = Path(name)
        prepare(directory)
        flips = all_flips(directory)[options.first :: options.every]
        with ProcessPoolExecutor(options.jobs) as pool:
            outcomes = list(pool.map(partial(trial, directory), flips))
    counted = Counter((o.flip.state, o.flip.file, o.found) for o in outcomes)
    for (state, file, found), number in counted.items():
        print(f"| {file} | server {state} | {found} | {number:,} |")
    bad = [outcome for outcome in outcomes if outcome.problem]
    for outcome in bad:
        print(f"{outcome.flip}: {outcome.problem}")
    print(f"{len(outcomes) - len(bad):,} of {len(outcomes):,} flips found and made good")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
