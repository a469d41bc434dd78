"""A run trained again from its log reaches the same bits, or says where it parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from esper.kasmina.digest import model_digest
from esper.tolaria.logged import LoggedRun, RerunError, from_records, read_run
from esper.tolaria.settings import GrowthSettings
from esper_events.events import Record, TransitionLapsed
from esper_events.stages import Stage
from support.growth_runs import FAST, Asleep, Loop, OneSeed, with_

STEPS = 90
RECORDED = with_(record_every=10)


def trained(
    controller: OneSeed | Asleep, settings: GrowthSettings = RECORDED, seed: int = 0
) -> tuple[Loop, list[Record]]:
    loop = Loop(dropout=0.2, batchnorm=True, seed=seed)
    growth = loop.grow(settings, controller)
    loop.run(STEPS)
    growth.close()
    return loop, growth.records()


def again(logged: LoggedRun, steps: int = STEPS, seed: int = 0) -> Loop:
    loop = Loop(dropout=0.2, batchnorm=True, seed=seed)
    loop.grow(RECORDED, Asleep(), rerun=logged)
    loop.run(steps)
    return loop


@pytest.mark.parametrize(
    "controller",
    [
        OneSeed("layer1..head", "widen"),
        OneSeed("layer1", "low_rank", again=True),
        OneSeed("layer1..head", "widen", cull_in=Stage.TRAINING),
        OneSeed("layer1..head", "widen", cull_in=Stage.GRAFTING, again=True),
        OneSeed("head", "bottleneck_mlp", cull_in=Stage.EVALUATING),
        Asleep(),
    ],
    ids=["kept", "kept again", "removed", "by the fork, again", "by the fork, late", "asleep"],
)
def test_a_rerun_has_the_same_bits(controller: OneSeed | Asleep) -> None:
    first, records = trained(controller)
    second = again(from_records(records))
    assert second.growth is not None
    report = second.growth.rerun_report()
    assert report.identical, report.difference
    assert report.final_weights == model_digest(first.model)
    assert report.checked > STEPS // 10


def test_a_lapsed_decision_stays_lapsed() -> None:
    first, records = trained(OneSeed("layer1..head", "widen"), with_(RECORDED, evaluate_steps=80))
    assert any(isinstance(record.event, TransitionLapsed) for record in records)
    second = again(from_records(records))
    assert second.growth is not None
    assert second.growth.rerun_report().final_weights == model_digest(first.model)


def test_a_difference_is_located_at_its_first_step_and_tensor() -> None:
    _, records = trained(OneSeed("layer1..head", "widen"))
    loop = Loop(dropout=0.2, batchnorm=True)
    growth = loop.grow(RECORDED, Asleep(), rerun=from_records(records))
    loop.run(34)
    with torch.no_grad():
        loop.model.head.bias[1] += 1e-7  # type: ignore[union-attr, index, operator]
    loop.run(STEPS - 34)
    difference = growth.rerun_report().difference
    assert difference is not None
    assert difference.step == 40
    assert not growth.rerun_report().identical


def test_another_host_is_told_from_the_start() -> None:
    _, records = trained(Asleep())
    report_of = again(from_records(records), seed=1).growth
    assert report_of is not None
    difference = report_of.rerun_report().difference
    assert difference is not None
    assert difference.step == 0
    assert "the host is" in difference.what


def test_a_rerun_may_stop_on_the_way() -> None:
    _, records = trained(OneSeed("layer1..head", "widen"))
    growth = again(from_records(records), steps=40).growth
    assert growth is not None
    report = growth.rerun_report()
    assert report.identical
    assert report.logged_weights is None
    assert report.step == 40


def test_a_run_on_disk_is_read_and_proven(tmp_path: Path) -> None:
    from esper.log.run import open_run_log
    from esper.log.workspace import Workspace

    log = open_run_log(tmp_path / "run", log_id="own", workspace=Workspace(tmp_path / "ws"))
    first = Loop(dropout=0.2, batchnorm=True)
    growth = first.grow(RECORDED, OneSeed("layer1..head", "widen"), log=log)
    first.run(STEPS)
    growth.close()
    assert again(read_run(tmp_path / "run")).growth is not None
    path = Loop(dropout=0.2, batchnorm=True)
    followed = path.grow(RECORDED, Asleep(), rerun=str(tmp_path / "run"))
    path.run(STEPS)
    assert followed.rerun_report().identical


def test_a_log_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RerunError, match="empty"):
        from_records([])
    with pytest.raises(RerunError, match="nowhere"):
        read_run(tmp_path / "nowhere")


def test_only_a_rerun_has_a_report() -> None:
    growth = Loop().grow(FAST, Asleep())
    with pytest.raises(RerunError, match="follows no log"):
        growth.rerun_report()
    growth.close()
