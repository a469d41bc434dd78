"""A run that goes on from a checkpoint ends with the bits of the run that nothing stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from esper.log.event_log import EventLog
from esper.log.journal import JournalStore
from esper.tolaria.checkpoint import file, keeper, writing
from esper.tolaria.checkpoint.file import CheckpointError
from esper.tolaria.growth import Growth
from esper.tolaria.logged import from_records
from esper_events.events import CheckpointWritten, RunEnded
from esper_events.keys import SigningKey
from esper_events.stages import Stage
from esper_events.verify import verify_path
from support.growth_runs import FAST, Asleep, Loop, OneSeed, bits, events, same, with_

KEY = SigningKey.generate()
RECORDED = with_(FAST, record_every=10)
STEPS = 110
SLOT = "layer1..head"


def widened() -> OneSeed:
    return OneSeed(SLOT, "widen")


@pytest.fixture(autouse=True)
def _all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every checkpoint stays."""
    for module in (keeper, writing):
        monkeypatch.setattr(module, "KEPT", 1000)


class Run:
    """A loop with a schedule, whose log and checkpoints lie in a directory."""

    def __init__(self, place: Path, controller: Any, resume: bool = False, **more: Any) -> None:
        self.loop = Loop(dropout=0.2, batchnorm=True)
        self.schedule = CosineAnnealingLR(self.loop.optimizer, 70)
        log = EventLog(JournalStore(place / "journal"), KEY, "test", run_dir=place)
        more = {
            "settings": RECORDED,
            "log": log,
            "run_dir": place,
            "resume": resume,
            "checkpoint_every": 20,
            "checkpoint_with": {"schedule": self.schedule},
        } | more
        self.growth: Growth = self.loop.grow(more.pop("settings"), controller, **more)
        self.loop.steps = self.growth.resumed_at
        self.loop.growth = None

    def train(self, to: int = STEPS, *, close: bool = True) -> Run:
        while self.loop.steps < to:
            batch = self.loop.batches[self.loop.steps % len(self.loop.batches)]
            self.loop.run(1)
            self.schedule.step()
            self.growth.step(batch, None)
            if self.growth._checkpoints is not None:
                self.growth._checkpoints.close()
        if close:
            self.growth.close()
        return self

    @property
    def bits(self) -> list[torch.Tensor]:
        return [*bits(self.loop), torch.tensor(self.loop.optimizer.param_groups[0]["lr"])]

    @property
    def written(self) -> list[int]:
        return [event.step for event in events(self.growth, CheckpointWritten)]


def cut(whole: Path, place: Path, records: int) -> Path:
    """The run as it would lie there had it been killed after so many records."""
    shutil.copytree(whole, place)
    (place / "checkpoint").unlink()
    store = JournalStore(whole / "journal")
    kept = list(store.read(0))
    store.close()
    shutil.rmtree(place / "journal")
    shorter = JournalStore(place / "journal")
    for number, segment in enumerate(kept[:records]):
        shorter.append(number, segment)
    shorter.close()
    return place


def test_a_run_that_is_left_goes_on_from_there(tmp_path: Path) -> None:
    """From the very step where nothing is on trial; else as a killed one does."""
    wanted = Run(tmp_path / "whole", widened()).train().bits
    place, stops = tmp_path / "left", []
    for stop in range(7, STEPS, 17):
        run = Run(place, widened(), resume=bool(stops)).train(stop, close=False)
        quiet = run.growth.engine is not None and run.growth.engine.quiet
        run.growth.leave()
        run.growth.leave()
        assert not events(run.growth, RunEnded)
        stops.append((stop, quiet))
        again = Run(place, widened(), resume=True)
        assert again.growth.resumed_at == stop if quiet else again.growth.resumed_at < stop
        again.growth.leave()
    assert {quiet for _, quiet in stops} == {True, False}
    done = Run(place, widened(), resume=True).train()
    assert same(done.bits, wanted)
    assert len(set(done.written)) == len(done.written), "one of each step"
    assert verify_path(place, KEY.public).ended


@pytest.mark.parametrize(
    ("controller", "more"),
    [
        (widened, {}),
        (lambda: OneSeed("layer1", "low_rank", objective="next_layer"), {}),
        (lambda: OneSeed("layer1", "low_rank"), {"settings": with_(RECORDED, fold=False)}),
        (lambda: OneSeed(SLOT, "widen", cull_in=Stage.GRAFTING), {}),
        (
            lambda: OneSeed(
                SLOT, "widen", cull_in=Stage.TRAINING, again=True, objective="negative_gradient"
            ),
            {"settings": with_(RECORDED, embargo=70)},
        ),
        (Asleep, {}),
    ],
    ids=["kept", "folded", "not folded", "culled", "cooling down", "asleep"],
)
def test_a_run_killed_anywhere_ends_as_the_whole_one(
    tmp_path: Path, controller: Any, more: dict[str, Any]
) -> None:
    whole = Run(tmp_path / "whole", controller(), **more).train()
    wanted = whole.bits
    assert len(whole.written) >= 2
    segments = JournalStore(tmp_path / "whole" / "journal")
    count = segments.count
    segments.close()
    seen = set()
    for records in range(count // 4, count, max(1, count // 7)):
        place = cut(tmp_path / "whole", tmp_path / f"cut-{records}", records)
        again = Run(place, controller(), resume=True, **more)
        seen.add(again.growth.resumed_at)
        again.train()
        assert same(again.bits, wanted), records
        assert again.growth.state(0).digest() == whole.growth.state(0).digest()
        assert verify_path(place, KEY.public).ended
    assert len(seen) > 2
    assert max(seen) >= 80


@pytest.mark.parametrize("stage", [Stage.TRAINING, Stage.GRAFTING, Stage.EVALUATING])
def test_a_run_killed_while_it_closes_ends_as_the_whole_one(tmp_path: Path, stage: Stage) -> None:
    """Closing in the middle of a trial tells of its end in several records."""
    whole = Run(tmp_path / "whole", widened())
    while not (whole.growth.engine and whole.growth.engine.watch.in_stages(frozenset({stage}))):
        whole.train(whole.loop.steps + 1, close=False)
    assert whole.growth.log.flush(10.0)
    before = len(whole.growth.records())
    whole.growth.close()
    segments = JournalStore(tmp_path / "whole" / "journal")
    count = segments.count
    segments.close()
    cuts = 0
    for number in range(count - 6, count):
        place = cut(tmp_path / "whole", tmp_path / f"cut-{number}", number)
        again = Run(place, widened(), resume=True)
        cuts += len(again.growth.records()) > before
        again.train(whole.loop.steps)
        assert same(again.bits, whole.bits), number
        assert verify_path(place, KEY.public).ended
    assert cuts >= 1, "some of the cuts fell behind the last step"


def test_a_rerun_of_a_resumed_run_is_identical_and_held_to_its_checkpoints(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole", widened()).train()
    logged = from_records(whole.growth.records())
    again = Run(tmp_path / "again", Asleep(), rerun=logged).train()
    report = again.growth.rerun_report()
    assert report.identical, report.difference
    assert again.written == []
    assert not (tmp_path / "again" / file.DIRECTORY).exists()
    without = [r for r in whole.growth.records() if not isinstance(r.event, CheckpointWritten)]
    fewer = Run(tmp_path / "fewer", Asleep(), rerun=from_records(without)).train()
    assert report.checked == fewer.growth.rerun_report().checked + len(whole.written)


def test_a_changed_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Run(tmp_path / "run", widened()).train(close=False)
    wanted = whole.bits
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "run", killed)
    *_, before, newest = whole.written
    path = file.path_of(killed / file.DIRECTORY, newest)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    resumed = Run(killed, widened(), resume=True)
    assert resumed.growth.resumed_at == before
    assert f"{newest:09}.safetensors is passed over: it is not the file" in caplog.text
    resumed.train(close=False)
    # Trained through again it has the same bytes, so the log names it already.
    assert path.read_bytes() == good
    assert resumed.written == whole.written
    assert same(resumed.bits, wanted)
    for run in (resumed, whole):
        run.growth.close()


def test_without_any_checkpoint_a_run_goes_on_from_its_start(tmp_path: Path) -> None:
    whole = Run(tmp_path / "run", widened()).train(close=False)
    wanted = whole.bits
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "run", killed)
    shutil.rmtree(killed / file.DIRECTORY)
    resumed = Run(killed, widened(), resume=True)
    assert resumed.growth.resumed_at == 0
    resumed.train()
    assert same(resumed.bits, wanted)


def test_training_batches_that_were_kept_back_are_kept(tmp_path: Path) -> None:
    def run(place: Path, resume: bool = False) -> Run:
        with pytest.warns(UserWarning, match="no probe batches given"):
            return Run(place, widened(), resume, probe=None, confirm=None)

    whole = run(tmp_path / "run").train(140, close=False)
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "run", killed)
    wanted = whole.train(160).bits
    resumed = run(killed, resume=True)
    assert resumed.growth.resumed_at > 100
    assert same(resumed.train(160).bits, wanted)


def test_held_out_batches_of_another_kind_are_refused_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    Run(tmp_path / "run", widened()).train(80, close=False)
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "run", killed)
    told = "the run that was killed had probe batches"
    with (
        pytest.warns(UserWarning, match="no probe"),
        pytest.raises(CheckpointError, match=told),
    ):
        Run(killed, widened(), resume=True, probe=None, confirm=None)
    with pytest.raises(CheckpointError, match=r"it holds the states of checkpoint_with\['schedule"):
        Run(killed, widened(), resume=True, checkpoint_with={})
    resumed = Run(killed, widened(), resume=True)  # It can still be resumed.
    assert resumed.growth.resumed_at > 0
    resumed.growth.close()
    (ended,) = events(resumed.growth, RunEnded)
    assert ended.outcome == "completed"


def test_a_disk_that_is_full_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file, "save_file", full)
    run = Run(tmp_path / "run", widened()).train()
    assert run.written == []
    assert "is not kept: there is no room for " in caplog.text
    assert "No space left on device" in str(run.growth.no_room)
    assert list((tmp_path / "run" / file.DIRECTORY).iterdir()) == []


def test_the_newest_two_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (keeper, writing):
        monkeypatch.setattr(module, "KEPT", 2)
    run = Run(tmp_path / "run", Asleep()).train()
    found = sorted(p.name for p in (tmp_path / "run" / file.DIRECTORY).iterdir())
    assert found == [f"{step:09}.safetensors" for step in run.written[-2:]]


class Forgetful:
    """A controller that cannot be restored."""

    def decide(self, observation: object) -> list[Any]:
        return []


class Odd:
    """An object with a state that is no data."""

    def state_dict(self) -> dict[str, Any]:
        return {"inner": [object()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise AssertionError


def test_what_cannot_be_kept_is_told_at_once(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no checkpoints are taken: a Forgetful cannot be"):
        run = Run(tmp_path / "one", Forgetful())
    assert run.train(50).written == []
    for more, told in (
        ({"checkpoint_with": {"odd": Odd()}}, r"checkpoint_with\['odd'\]/inner/0 is a builtins\."),
        ({"checkpoint_every": 0}, "got checkpoint_every=0, wanted a number of steps from 1 on"),
        ({"run_dir": None}, "checkpoint_every needs run_dir"),
    ):
        with pytest.raises(ValueError, match=told):
            Run(tmp_path / str(len(told)), Asleep(), **more)


def test_batches_that_were_seen_are_passed_over_and_draw_nothing(tmp_path: Path) -> None:
    Run(tmp_path / "run", Asleep()).train(60, close=False)
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "run", killed)
    resumed = Run(killed, Asleep(), resume=True)
    state = torch.get_rng_state()

    def drawn() -> Any:
        for number in range(100):
            torch.rand(1)
            yield number

    rest = resumed.growth.unseen(drawn())
    assert torch.equal(torch.get_rng_state(), state)
    assert next(rest) == resumed.growth.resumed_at == 60
    resumed.growth.close()
