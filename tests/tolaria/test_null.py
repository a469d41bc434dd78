"""The null test of the fork gate, in short; ``benchmarks/null_test.py`` is the whole of it."""

from __future__ import annotations

import pytest
import torch

from benchmarks.null_test import SETTINGS, TASKS, OneSeed, run_campaign
from esper.blueprints.library import LIBRARY
from esper.kasmina.isolation import seed_everything
from esper.log.event_log import EventLog
from esper.log.memory import MemoryStore
from esper.tolaria.config import DataSettings
from esper.tolaria.data import load
from esper.tolaria.growth import Growth
from esper.tolaria.models import mlp
from esper.tolaria.training import (
    Batch,
    batches_of,
    classification_loss,
    endless_batches,
    train_steps,
)
from esper_events.keys import SigningKey
from support.growth_runs import stages


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_frozen_random_seeds_do_not_survive_the_fork_gate(task: str) -> None:
    verdicts = run_campaign(task, TASKS[task], range(4), report=False)
    assert [verdict.kept for verdict in verdicts] == [False] * 4
    assert len({verdict.slot for verdict in verdicts}) == 4


def test_the_same_gate_opens_for_a_seed_that_helps() -> None:
    splits = load(DataSettings(name="digits"))
    seed_everything(0)
    model = mlp(splits.features, (4,), splits.classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    growth = Growth(
        model,
        optimizer,
        classification_loss(model),
        batches_of(splits.probe, 16),
        confirm=batches_of(splits.confirm, 16),
        settings=SETTINGS,
        controller=OneSeed("layer1..head", "widen", 200),
        library=(LIBRARY["widen"],),
        log=EventLog(MemoryStore(), SigningKey.generate(), "positive"),
    )
    steps = 250 + SETTINGS.blend_steps + SETTINGS.stabilize_steps + SETTINGS.evaluate_steps
    batches = endless_batches(splits.train, 32, 0)

    def after_step(_: int, batch: Batch, loss: torch.Tensor) -> None:
        growth.step(batch, loss)

    train_steps(model, optimizer, batches, steps + 150, after_step)
    growth.close()
    assert stages(growth.records())[-1] == "fossilized"
