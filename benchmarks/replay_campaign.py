"""The replay campaign: is what a log replays to, at every place of it, what was there live?

One run of each config is folded by all four projections while it trains. Its log is then replayed
in processes with other hash seeds: by ``replay`` to every sequence number, from a snapshot at
every place, and in batches of several sizes. Every digest must be the live one.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.commands import Popen, copied, parser, python, told
from benchmarks.digests import LiveDigests
from esper.projections import snapshots
from esper.projections.catalogue import PROJECTIONS
from esper.projections.projection import Projection
from esper.projections.replay import replay
from esper.projections.snapshots import Snapshot
from esper_events.events import Record
from esper_events.reader import LogReader

HASH_SEEDS = ("0", "1", "4711", "random")
BATCHES = (1, 7, 64)
REACH = 16
RARELY = 25

Found = Iterator[tuple[str, int, str]]
"""Ways by which a state was reached, its place, and its digest."""


def in_batches(projection: Projection[Any], records: Sequence[Record], size: int) -> Found:
    """Every state, its records folded ``size`` at a time."""
    start = projection.initial
    for place in range(1, len(records) + 1):
        whole = (place - 1) // size * size
        if place - 1 == whole and place > 1:
            start = projection.fold_all(records[whole - size : whole], start)
        state = projection.fold_all(records[whole:place], start)
        yield f"in batches of {size}", place, state.digest()


def from_snapshots(projection: Projection[Any], records: Sequence[Record]) -> Found:
    """Every state through the bytes of a snapshot, the ``REACH`` states after it, and the last."""
    state = projection.initial
    for place, record in enumerate(records, start=1):
        how, state = f"from a snapshot at {place}", projection.fold(state, record)
        kept = msgspec.msgpack.encode(snapshots.take(projection, state, "", b""))
        again = msgspec.msgpack.decode(kept, type=Snapshot)
        later = snapshots.restore(projection, again)
        yield how, place, later.digest()
        for following in records[place : place + REACH]:
            later = projection.fold(later, following)
            yield how, later.records, later.digest()
        later = projection.fold_all(records[later.records :], later)
        yield how, len(records), later.digest()


def by_replay(projection: Projection[Any], run_dir: Path, records: int) -> Found:
    """Every state as ``esper replay --cache`` gives it, each from the snapshot that the one before
    left, and some without a cache; the log is verified each time."""
    for place in range(records + 1):
        replayed = replay(run_dir, projection, place, cached=True)
        yield f"by replay from a snapshot at {replayed.snapshot}", place, replayed.digest
    for place in {*range(0, records, RARELY), records}:
        yield "by replay", place, replay(run_dir, projection, place).digest


def compare(run_dir: Path, live: LiveDigests, batches: Sequence[int]) -> dict[str, Any]:
    """Replay the log in ``run_dir`` in all ways: the digests compared, the first that differs."""
    records = list(LogReader(run_dir).records())
    if len(records) != live.records:
        return {"compared": 0, "problem": f"{len(records)} records, {live.records} live"}
    compared = 0
    for name, projection in PROJECTIONS.items():
        ways = [by_replay(projection, run_dir, len(records)), from_snapshots(projection, records)]
        ways += [in_batches(projection, records, size) for size in (*batches, len(records))]
        for way in ways:
            for how, place, digest in way:
                compared += 1
                if digest != live.digests[name][place]:
                    return {"compared": compared, "problem": f"{name} at {place} {how}"}
    return {"compared": compared, "problem": ""}


def replays(
    directory: Path, name: str, hash_seeds: Sequence[str], pythons: Sequence[str]
) -> list[Popen]:
    """Processes of these interpreters with these hash seeds that replay the run ``name``, each a
    copy of its own."""
    started = []
    for number, (interpreter, salt) in enumerate(product(pythons, hash_seeds)):
        copy = shutil.copytree(directory / name, directory / f"{name}-copy-{number}")
        arguments = ("--replay", copy, directory / f"{name}.json")
        module, more = "benchmarks.replay_campaign", {"PYTHONHASHSEED": salt}
        started.append(python(directory, module, *arguments, interpreter=interpreter, **more))
    return started


def trial(
    directory: Path, config: Path, seed: int, hash_seeds: Sequence[str], pythons: Sequence[str]
) -> tuple[str, bool]:
    """Follow one run of ``config`` and replay it; its row of the table, and whether all holds."""
    name = f"{config.stem}-{seed}"
    seen, start = directory / f"{name}.json", time.perf_counter()
    with python(directory, "benchmarks.live_digests", config, str(seed), name, seen) as process:
        _, err = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"training {config} failed: {err[-500:]}")
    live = msgspec.json.decode(seen.read_bytes(), type=LiveDigests)
    middle = time.perf_counter()
    problems = [f"the running lattice differs after step {step}" for step in live.differences]
    results = [told(process) for process in replays(directory, name, hash_seeds, pythons)]
    problems += [result["problem"] for result in results if result["problem"]]
    compared = sum(result["compared"] for result in results)
    row = (
        f"| {config.stem} | {seed} | {live.steps:,} | {live.records} | {live.compared:,} | "
        f"{compared:,} | {middle - start:.0f} + {time.perf_counter() - middle:.0f} | "
        f"{problems[0] if problems else 'equal'} |"
    )
    return row, not problems


HEADER = (
    "| example | seed | steps | events | running lattice compared | digests compared | "
    "train + replay, s | |\n|---|---:|---:|---:|---:|---:|---:|---|"
)


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; exit 1 when any digest differs."""
    options = parser(__doc__)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--hash-seeds", nargs="+", default=HASH_SEEDS, metavar="N")
    options.add_argument(
        "--pythons", nargs="+", default=[sys.executable], metavar="FILE", help="interpreters"
    )
    options.add_argument("--replay", type=Path, nargs=2, metavar=("DIR", "DIGESTS"))
    chosen = options.parse_args(arguments)
    if chosen.replay is not None:
        run_dir, seen = chosen.replay
        live = msgspec.json.decode(seen.read_bytes(), type=LiveDigests)
        print(json.dumps(compare(run_dir, live, BATCHES)))
        return 0
    good = 0
    with tempfile.TemporaryDirectory(prefix="esper-replays-") as place:
        directory = Path(place)
        print(HEADER, flush=True)
        for config in chosen.config:
            config = copied(config, directory, chosen.steps)
            row, equal = trial(directory, config, chosen.seed, chosen.hash_seeds, chosen.pythons)
            good += equal
            print(row, flush=True)
    print(
        f"\n{good} of {len(chosen.config)} runs: live, replayed and replayed-from-snapshot digests "
        f"of {len(PROJECTIONS)} projections are equal at every sequence number, over "
        f"{len(chosen.pythons)} interpreters, {len(chosen.hash_seeds)} hash seeds and batches of "
        f"{', '.join(map(str, BATCHES))} and all"
    )
    return 0 if good == len(chosen.config) else 1


if __name__ == "__main__":
    sys.exit(main())
