"""The replay campaign: is what a log replays to, at every place of it, what was there live?

One run of each config is folded by all four projections while it trains. Its log is then replayed
in processes with other hash seeds: by ``replay`` to every sequence number, from a snapshot at
every place, and in batches of several sizes. Every digest must be the live one.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.commands import copied, parser, python, told
from benchmarks.live_digests import LiveDigests
from esper.projections import snapshots
from esper.projections.catalogue import PROJECTIONS
from esper.projections.projection import Projection
from esper.projections.replay import replay
from esper_events.events import Record
from esper_events.reader import LogReader

HASH_SEEDS = ("0", "1", "4711", "random")
BATCHES = (1, 7, 64)

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
    """Every state from a snapshot of each state before it: what is kept, and then folded on."""
    state = projection.initial
    for place, record in enumerate(records, start=1):
        state = projection.fold(state, record)
        kept = snapshots.take(projection, state, "", b"")
        again = snapshots.restore(
            projection,
            msgspec.msgpack.decode(msgspec.msgpack.encode(kept), type=snapshots.Snapshot),
        )
        yield f"from a snapshot at {place}", place, again.digest()
        for later, following in enumerate(records[place:], start=place + 1):
            again = projection.fold(again, following)
            yield f"from a snapshot at {place}", later, again.digest()


def by_replay(projection: Projection[Any], run_dir: Path, records: int) -> Found:
    """Every state as ``esper replay`` gives it, without a cache and then with one."""
    for cached in (False, True):
        for place in range(records + 1):
            replayed = replay(run_dir, projection, place, cached=cached)
            begun = f"from {replayed.snapshot} " if cached else ""
            yield f"by replay {begun}of the verified log", place, replayed.digest
    (run_dir / snapshots.SNAPSHOTS / projection.name).unlink()


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


def trial(directory: Path, config: Path, seed: int, hash_seeds: Sequence[str]) -> tuple[str, bool]:
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
    compared = 0
    for salt in hash_seeds:
        replayed = python(
            directory, "benchmarks.replay_campaign", "--replay", name, seen, PYTHONHASHSEED=salt
        )
        result = told(replayed)
        compared += result["compared"]
        problems += [f"{result['problem']} (hash seed {salt})"] if result["problem"] else []
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
            row, equal = trial(
                directory, copied(config, directory, chosen.steps), chosen.seed, chosen.hash_seeds
            )
            good += equal
            print(row, flush=True)
    print(
        f"\n{good} of {len(chosen.config)} runs: live, replayed and replayed-from-snapshot digests "
        f"of {len(PROJECTIONS)} projections are equal at every sequence number, over "
        f"{len(chosen.hash_seeds)} hash seeds and batches of {', '.join(map(str, BATCHES))} and all"
    )
    return 0 if good == len(chosen.config) else 1


if __name__ == "__main__":
    sys.exit(main())
