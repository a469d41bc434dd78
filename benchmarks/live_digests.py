"""One run whose projections are folded while it trains: ``CONFIG SEED RUN_DIR DIGESTS``.

After every optimizer step the records that have been acknowledged meanwhile are folded, one by
one, and the digest after each is kept. Where nothing waits for its acknowledgement, the folded
lattice is compared with the running one. What was seen is written to the file DIGESTS.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from benchmarks.digests import LiveDigests
from esper.log.event_log import LogSummary
from esper.projections.catalogue import PROJECTIONS
from esper.tolaria.config import read, with_seed
from esper.tolaria.growth import Growth
from esper.tolaria.observer import Silent
from esper.tolaria.trainer import grow


class Follower:
    """Folds the records of a run as they are acknowledged."""

    def __init__(self) -> None:
        self._states: dict[str, Any] = {name: p.initial for name, p in PROJECTIONS.items()}
        self.seen = LiveDigests({name: [p.initial.digest()] for name, p in PROJECTIONS.items()})

    def follow(self, growth: Growth) -> None:
        """Fold what is new; compare the lattices where all that was said is acknowledged."""
        settled = growth.log.flush(0.0)
        for record in growth.records(self.seen.records):
            for name, projection in PROJECTIONS.items():
                self._states[name] = projection.fold(self._states[name], record)
                self.seen.digests[name].append(self._states[name].digest())
        if settled:
            self._compare(growth)

    def _compare(self, growth: Growth) -> None:
        # The running lattice has no decisions that wait: the engine's decisions do.
        folded = msgspec.structs.replace(self._states["lattice"], open={})
        self.seen.compared += 1
        if growth.state(folded.records).digest() != folded.digest():
            self.seen.differences.append(self.seen.steps)


def follow(config: Path, seed: int, run_dir: Path) -> LiveDigests:
    """Train ``config`` with ``seed`` as ``esper train`` does, and watch it at every step."""
    follower = Follower()
    step, close = Growth.step, Growth.close

    def followed_step(growth: Growth, *arguments: Any, **more: Any) -> None:
        step(growth, *arguments, **more)
        follower.seen.steps += 1
        follower.follow(growth)

    def followed_close(growth: Growth, *arguments: Any, **more: Any) -> LogSummary:
        summary = close(growth, *arguments, **more)
        follower.follow(growth)
        return summary

    with (
        mock.patch.object(Growth, "step", followed_step),
        mock.patch.object(Growth, "close", followed_close),
    ):
        chosen = with_seed(read(config), seed)
        grow(chosen, run_dir=run_dir, nats=None, seed=seed, observer=Silent())
    return follower.seen


def main() -> None:
    """Train one run, and write down what was seen."""
    config, seed, run_dir, digests = sys.argv[1:]
    seen = follow(Path(config), int(seed), Path(run_dir))
    Path(digests).write_bytes(msgspec.json.encode(seen))


if __name__ == "__main__":
    main()
