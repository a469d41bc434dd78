from __future__ import annotations

import gc
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina.errors import KasminaError, SlotError
from esper.log.event_log import EventLog
from esper.log.memory import MemoryStore
from esper.log.workspace import Workspace
from esper.projections.lattice import LatticeState, ProjectionError
from esper.tolaria.engine import Engine
from esper.tolaria.growth import RESERVED, Growth
from esper.tolaria.heldout import HeldOutError
from esper_events.events import (
    BlueprintRegistered,
    GateMeasured,
    LatticeDeclared,
    RunEnded,
    RunStarted,
    TransitionDecided,
)
from esper_events.keys import SigningKey
from esper_events.stages import Gate, Stage
from esper_events.verify import verify_path
from support.growth_runs import FAST, Asleep, Loop, OneSeed, bits, events, plain, same, with_


def new_log() -> EventLog:
    return EventLog(MemoryStore(), SigningKey.generate(), "test")


def ending(growth: Growth) -> RunEnded:
    (ended,) = events(growth, RunEnded)
    assert isinstance(ended, RunEnded)
    return ended


def test_a_run_says_what_it_is_before_anything_else() -> None:
    loop = Loop()
    growth = loop.grow(with_(blueprints=("widen", "low_rank")), Asleep(), seed=7, config="text")
    growth.close()
    kinds = [type(record.event) for record in growth.records()]
    assert kinds == [
        RunStarted,
        LatticeDeclared,
        BlueprintRegistered,
        BlueprintRegistered,
        RunEnded,
    ]
    (started,) = events(growth, RunStarted)
    assert (started.run, started.seed, started.config) == (growth.run, 7, "text")
    assert started.trainer_key == growth.log.credentials.trainer_key
    assert {b.name for b in events(growth, BlueprintRegistered)} == {"widen", "low_rank"}
    assert {"torch", "threads", "cpu_capability"} <= set(started.platform)


def test_without_probe_batches_training_ones_are_kept_back_and_it_is_said() -> None:
    loop = Loop()
    with pytest.warns(UserWarning, match=f"first {RESERVED} training batches") as caught:
        growth = loop.grow(with_(evaluate_steps=10), OneSeed("head", "low_rank"), probe=None)
    assert len(caught) == 1
    loop.run(RESERVED - 1)
    assert growth.engine is None
    assert growth.seed_rows() == []
    assert growth.state(3) == LatticeState(records=3)
    loop.run(60)
    assert growth.engine is not None
    growth.close()
    told = [g for g in events(growth, GateMeasured) if g.gate in (Gate.SHADOW, Gate.FORK)]
    assert told
    assert all(g.reason.endswith(", on reserved training batches") for g in told)


def test_a_run_that_ends_before_there_are_enough_batches_ends_well() -> None:
    loop = Loop()
    with pytest.warns(UserWarning, match="no probe batches given"):
        growth = loop.grow(FAST, Asleep(), probe=None)
    loop.run(3)
    growth.close()
    assert (ending(growth).outcome, ending(growth).step) == ("completed", 3)


def test_no_warning_where_there_is_nothing_to_warn_of() -> None:
    loop = Loop()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.grow(FAST, Asleep()).close()


def test_too_few_probe_batches_are_refused_before_a_log_is_opened(tmp_path: Path) -> None:
    loop = Loop()
    with pytest.raises(HeldOutError, match="got 5 probe batches"):
        Growth(loop.model, loop.optimizer, loop.loss_fn, loop.probe[:5], run_dir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_blueprint_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="growth.blueprints: got 'widne', wanted some of low_rank"):
        Loop().grow(with_(blueprints=("widen", "widne")), Asleep())


def test_an_optimizer_that_no_seed_could_join_is_refused_at_once() -> None:
    loop = Loop()
    loop.optimizer = torch.optim.LBFGS(loop.model.parameters())
    with pytest.raises(KasminaError, match="LBFGS"):
        loop.grow(FAST, Asleep())


class Scale(nn.Module):
    """A model of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_a_host_without_a_place_to_grow_is_refused_before_a_log_is_opened(tmp_path: Path) -> None:
    model = Scale()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [torch.randn(2, 8) for _ in range(6)]
    with pytest.raises(SlotError, match="the host has no slot"):
        Growth(model, optimizer, lambda x: model(x).mean(), batches, run_dir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_two_cannot_grow_one_model_at_a_time() -> None:
    loop = Loop()
    growth = loop.grow(FAST, Asleep())
    with pytest.raises(ValueError, match=r"another Growth is at work on this model.*close\(\) it"):
        loop.grow(FAST, Asleep())
    growth.close()
    loop.grow(FAST, Asleep()).close()


def test_growth_that_was_never_closed_is_told_of_and_its_log_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop, store = Loop(), MemoryStore()
    growth = loop.grow(FAST, OneSeed("layer1..head", "widen"), store)
    loop.run(30)
    growth.log.flush(10)
    written = store.count
    loop.growth = None
    del growth
    gc.collect()
    assert "growth of run test was never closed: its log is kept but has no end" in caplog.text
    assert store.count >= written > 1
    loop.grow(FAST, Asleep()).close()  # What nobody holds on to does not stand in the way.


def test_a_step_between_loss_and_backward_is_refused_while_a_graft_is_tested() -> None:
    loop = Loop()
    growth = loop.grow(FAST, OneSeed("layer1..head", "widen"))
    while growth.engine is None or growth.engine.transitions.fork is None:
        loop.run(1)
    loss = loop.loss_fn(loop.batches[0])
    with pytest.raises(RuntimeError, match=r"between a loss and its backward pass.*call it after"):
        growth.step(loop.batches[0], loss)
    loss.backward()
    growth.step(loop.batches[0], loss)
    growth.close()


def test_a_loop_that_keeps_its_loss_to_itself_grows_as_well() -> None:
    loop = Loop()
    growth = loop.grow(FAST, OneSeed("layer1..head", "widen"))
    loop.run(110, lambda *_: None)
    growth.close()
    assert len(growth.fossils) == 1


def test_a_loss_that_still_has_its_graph_is_no_reason_to_warn() -> None:
    loop = Loop()
    growth = loop.grow(FAST, OneSeed("layer1..head", "widen"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.run(110, lambda _, loss: loss.requires_grad_())
    growth.close()
    assert len(growth.fossils) == 1


def test_closing_twice_gives_the_same_summary_and_steps_are_over() -> None:
    loop = Loop()
    growth = loop.grow(FAST, Asleep())
    loop.run(3)
    summary = growth.close(figures=lambda: {"accuracy": 12.5})
    assert growth.close("failed", "again") is summary
    assert summary.events == len(growth.records())
    assert ending(growth).figures == {"accuracy": 12.5}
    with pytest.raises(RuntimeError, match="growth.step after growth.close"):
        loop.run(1)


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (KeyboardInterrupt(), "interrupted", "interrupted by the user"),
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
        (None, "completed", ""),
    ],
)
def test_leaving_the_block_ends_the_run_and_says_how(
    error: BaseException | None, outcome: str, reason: str
) -> None:
    loop = Loop()
    growth = loop.grow(FAST, OneSeed("layer1..head", "widen"))
    leaves = nullcontext() if error is None else pytest.raises(type(error))
    with leaves, growth as entered:
        assert entered is growth
        while growth.engine is None or growth.engine.transitions.fork is None:
            loop.run(1)
        loop.run(2)
        if error is not None:
            raise error
    assert (ending(growth).outcome, ending(growth).reason) == (outcome, reason)
    assert same(bits(loop), plain(loop.steps))  # The graft under way has left.


def test_what_cannot_be_measured_at_the_end_makes_the_run_a_failed_one() -> None:
    loop = Loop()
    growth = loop.grow(FAST, Asleep())

    def fail() -> dict[str, float]:
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"), growth:
        growth.close(figures=fail)
    assert (ending(growth).outcome, ending(growth).reason) == ("failed", "OSError: no such file")


def test_a_lattice_that_is_not_what_its_log_tells_is_a_failure_on_the_record() -> None:
    loop = Loop()
    growth = loop.grow(FAST, OneSeed("layer1..head", "widen"))
    loop.run(120)
    assert growth.engine is not None
    growth.engine.transitions.weights[0] = "something else"
    with pytest.raises(ProjectionError, match="seed 0 is .*something else"):
        growth.close()
    assert ending(growth).outcome == "failed"


def test_an_idle_step_does_nothing_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    points: list[int] = []
    safe_point = Engine.safe_point

    def counted(engine: Engine, step: int, batch: object, loss: object) -> None:
        points.append(step)
        safe_point(engine, step, batch, loss)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "safe_point", counted)
    loop = Loop()
    growth = loop.grow(with_(observe_every=10), Asleep())
    loop.evaluations = 0
    loop.run(39)
    assert points == [10, 20, 30]
    watched = len(loop.probe) // 2
    assert loop.evaluations == 39 + 3 * watched
    assert len(growth.records()) <= 2 + len(growth.library)
    growth.close()
    assert same(bits(loop), plain(39))


def test_the_users_own_update_trains_the_fork_too() -> None:
    def train(growth: Growth | None, loop: Loop, steps: int) -> None:
        for _ in range(steps):
            batch = loop.batches[loop.steps % len(loop.batches)]
            loop.steps += 1
            loss = loop.loss_fn(batch)
            update(loop, loss)
            if growth is not None:
                growth.step(batch, loss.detach())

    def update(loop: Loop, loss: torch.Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(loop.model.parameters(), 0.05)
        loop.optimizer.step()
        loop.optimizer.zero_grad()

    loop, alone = Loop(), Loop()
    controller = OneSeed("layer1..head", "widen", Stage.EVALUATING)
    growth = loop.grow(FAST, controller, update=lambda loss: update(loop, loss))
    train(growth, loop, 100)
    growth.close()
    train(None, alone, 100)
    assert "evaluating" in {e.source.value for e in events(growth, TransitionDecided)}
    assert same(bits(loop), bits(alone))


def test_a_run_on_the_embedded_server_is_whole_on_disk(tmp_path: Path) -> None:
    loop = Loop()
    with Growth(
        loop.model,
        loop.optimizer,
        loop.loss_fn,
        loop.probe,
        settings=FAST,
        controller=OneSeed("layer1..head", "widen"),
        run_dir=tmp_path / "run",
        workspace=tmp_path / "workspace",
    ) as growth:
        loop.growth = growth
        loop.run(110)
    summary = growth.close()
    assert len(growth.fossils) == 1
    assert summary.behind == 0
    report = verify_path(tmp_path / "run", Workspace(tmp_path / "workspace").key().public)
    assert (report.ok, report.ended, report.head) == (True, True, summary.head)
    assert report.events == summary.events == len(growth.records())
