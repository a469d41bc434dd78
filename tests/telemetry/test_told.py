"""What a person reads of it: the layers that hold a stalled run back."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import esper
from esper.cli.story import Story
from esper.log.event_log import EventLog
from esper.log.memory import MemoryStore
from esper_events.events import PlateauDetected, Record
from esper_events.keys import SigningKey


def stalled() -> Record:
    """The first plateau of a run whose second layer has 1 unit to read."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 1), nn.ReLU(), nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters())
    batches = [(torch.randn(32, 5), torch.randint(3, (32,))) for _ in range(6)]

    def loss_fn(batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    settings = esper.GrowthSettings(observe_every=5, warmup=10, patience=1, plateau=1.0)
    log = EventLog(MemoryStore(), SigningKey.generate(), "told")
    with esper.Growth(model, optimizer, loss_fn, batches, settings=settings, log=log) as growth:
        for batch in batches * 4:
            loss = loss_fn(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            growth.step(batch, loss)
        growth.log.flush(5.0)
        return next(r for r in growth.records() if isinstance(r.event, PlateauDetected))


def test_a_plateau_names_the_layers_that_are_held_back_in_words() -> None:
    record = stalled()
    assert isinstance(record.event, PlateauDetected)
    figures = record.event.figures
    parts = {k: v for k, v in figures.items() if k.startswith("unreachable/")}
    assert parts and all(0.0 <= part <= 1.0 for part in parts.values())
    assert figures["effective_rank/2"] <= 1.0
    line = Story().tell(record)
    most = max(parts, key=lambda key: parts[key]).partition("/")[2]
    assert line is not None
    assert f"; held back most: {most} ({max(parts.values()):.0%} of what is asked" in line
    assert "unreachable/" not in line and "effective_rank/" not in line
