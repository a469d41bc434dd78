"""A real run: its live states, those replayed from its log, and those from snapshots are one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from esper.log.journal import JournalStore
from esper.projections.catalogue import AUDIT, LATTICE, PROJECTIONS
from esper.projections.lattice import LatticeState
from esper.projections.projection import Projection
from esper.projections.replay import replay
from esper.projections.snapshots import SNAPSHOTS
from esper_events.events import RunEnded
from esper_events.framing import JOURNAL
from esper_events.stages import Stage
from support.growth_runs import FAST, Loop, OneSeed, with_

EACH = pytest.mark.parametrize("projection", PROJECTIONS.values(), ids=PROJECTIONS.keys())


class Followed:
    """A run whose projections were folded while it trained, a batch a step."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.digests = {name: [p.initial.digest()] for name, p in PROJECTIONS.items()}
        self._states: dict[str, Any] = {name: p.initial for name, p in PROJECTIONS.items()}
        loop = Loop()
        # One seed fails in its trial, the next becomes part of the host, a third is cut short.
        controller = OneSeed("layer1..head", "widen", cull_in=Stage.TRAINING, again=True)
        settings = with_(FAST, embargo=2)
        self._growth = loop.grow(settings, controller, JournalStore(directory / JOURNAL.parent))
        for _ in range(90):
            loop.run(1)
            self._follow()
            self._compare_with_the_engine()
            if any(seed.stage is Stage.CULLED for seed in self._states["lattice"].seeds.values()):
                controller.cull_in = None
        self._growth.close()
        self._follow()
        self.records = self._growth.records()

    def _follow(self) -> None:
        assert self._growth.log.flush(10.0)
        fresh = self._growth.records(self._states["lattice"].records)
        for name, projection in PROJECTIONS.items():
            for record in fresh:
                self._states[name] = projection.fold(self._states[name], record)
                self.digests[name].append(self._states[name].digest())

    def _compare_with_the_engine(self) -> None:
        folded: LatticeState = self._states["lattice"]
        live = self._growth.state(folded.records)
        assert live.digest() == msgspec.structs.replace(folded, open={}).digest()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Followed:
    return Followed(tmp_path_factory.mktemp("run"))


def test_the_run_went_through_much(run: Followed) -> None:
    audit = replay(run.directory, AUDIT).state
    assert {"culled", "dormant", "fossilized"} <= audit.applied.keys()
    assert audit.end.outcome == "completed"
    assert audit.end.lattice_agrees


@EACH
def test_replayed_states_are_the_live_ones_at_every_place(
    run: Followed, projection: Projection[Any]
) -> None:
    places = range(len(run.records) + 1)
    assert [replay(run.directory, projection, seq).digest for seq in places] == run.digests[
        projection.name
    ]


@EACH
def test_replay_from_a_snapshot_at_any_place_ends_the_same(
    run: Followed, projection: Projection[Any]
) -> None:
    live, total = run.digests[projection.name], len(run.records)
    for at in range(1, total):
        (run.directory / SNAPSHOTS / projection.name).unlink(missing_ok=True)
        assert replay(run.directory, projection, at, cached=True).digest == live[at]
        resumed = replay(run.directory, projection, total, cached=True)
        assert (resumed.snapshot, resumed.digest, resumed.notes) == (at, live[total], ())


@EACH
def test_snapshots_carried_from_event_to_event_stay_live(
    run: Followed, projection: Projection[Any]
) -> None:
    (run.directory / SNAPSHOTS / projection.name).unlink(missing_ok=True)
    for seq, digest in enumerate(run.digests[projection.name]):
        replayed = replay(run.directory, projection, seq, cached=True)
        assert (replayed.snapshot, replayed.digest) == (max(0, seq - 1), digest)


def test_the_run_itself_names_the_digest_that_its_log_replays_to(run: Followed) -> None:
    ended = run.records[-1].event
    assert isinstance(ended, RunEnded)
    assert replay(run.directory, LATTICE, len(run.records) - 1).digest == ended.lattice


@pytest.mark.parametrize("outcome", ["completed", "interrupted", "failed"])
@pytest.mark.parametrize("steps", [6, 8, 12, 20])
def test_a_run_that_ends_in_the_middle_of_a_trial_tells_the_truth_of_its_end(
    steps: int, outcome: Literal["completed", "interrupted", "failed"]
) -> None:
    loop = Loop()
    growth = loop.grow(FAST, OneSeed("layer1..head", "widen"))
    loop.run(steps)
    growth.close(outcome)
    audit = AUDIT.fold_all(growth.records())
    assert audit.end is not None
    assert (audit.end.outcome, audit.end.lattice_agrees) == (outcome, True)
