"""Controllers that want anything at any time, losses that explode, and a log that stutters."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from esper.log.memory import MemoryStore
from esper.projections.lattice import fold_all
from esper.tamiyo.interface import Advance, Cull, Germinate, Observation, Proposal
from esper_events.events import RunEnded, TransitionApplied, TransitionDecided, TransitionLapsed
from esper_events.rules import Rules
from esper_events.stages import BLENDED
from support.growth_runs import Loop, bits, events, plain, same, with_

PLACES = [
    ("layer1", "low_rank"),
    ("norm1", "bottleneck_mlp"),
    ("layer1..norm1", "widen"),
    ("layer1..head", "widen"),
    ("layer1..head", "gated_widen"),
    ("head..head", "widen"),
]
RESTLESS: dict[str, Any] = {"dropout": 0.3, "batchnorm": True}


class Chaos:
    """Germinates anywhere, advances and culls anyone, asks twice, at random."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def decide(self, observation: Observation) -> list[Proposal]:
        chance = self._random.random
        proposals: list[Proposal] = []
        for seed in observation.seeds:
            proposals += [Advance(seed.id, "so")] * self._random.choice([0, 1, 1, 2])
            proposals += [Cull(seed.id, "so")] * (chance() < 0.08)
        if chance() < 0.4 and len(observation.seeds) < 4:
            proposals.append(Germinate(*self._random.choice(PLACES), "so"))
        self._random.shuffle(proposals)
        return proposals


class Stuttering(MemoryStore):
    """A disk that now and then takes longer than anybody waits."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)

    def append(self, position: int, segment: bytes) -> None:
        if self._random.random() < 0.1:
            threading.Event().wait(0.05)
        super().append(position, segment)


def size_of(loop: Loop) -> int:
    return sum(p.numel() for p in loop.model.parameters())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sync", [True, False])
def test_whatever_is_wanted_model_and_log_agree(seed: int, sync: bool) -> None:
    fates = random.Random(seed)
    opens = seed % 2 == 0
    settings = with_(
        lead=fates.choice([1, 2, 7]),
        blend_steps=3,
        stabilize_steps=1,
        evaluate_steps=5,
        embargo=fates.choice([0, 3, 20]),
        shadow_confidence=0.01,
        min_effect=0.0 if opens else 1.0,
        sync_decisions=sync,
        ack_timeout=5.0 if sync else 0.02,
        breaker_limit=2,
        breaker_cooldown=10,
    )

    def told(_: int, loss: Tensor) -> Tensor:
        return torch.tensor(float("inf")) if fates.random() < 0.02 else loss

    loop = Loop(**RESTLESS)
    growth = loop.grow(settings, Chaos(seed), MemoryStore() if sync else Stuttering(seed))
    loop.run(150, told)
    growth.close()
    ours = bits(loop)
    log = growth.records()
    ended = log[-1].event
    assert isinstance(ended, RunEnded)
    assert (ended.outcome, ended.lattice) == ("completed", fold_all(log[:-1]).digest())
    rules = Rules()
    assert [rules.admit(record.event) for record in log] == [None] * len(log)
    settled = [
        e.decision for e in (*events(growth, TransitionApplied), *events(growth, TransitionLapsed))
    ]
    assert sorted(settled) == [d.decision for d in events(growth, TransitionDecided)]
    assert settled
    assert opens or not growth.fossils
    assert len(loop.optimizer._optimizer_step_post_hooks) == 0
    # Where the log did not answer even at the end, a graft may stay, as the record tells.
    left = [row for row in growth.seed_rows() if row.stage in BLENDED]
    assert not (sync and left)
    if not left:
        assert size_of(loop) == size_of(Loop(**RESTLESS)) + sum(
            p.numel() for trial in growth.fossils for p in trial.seed.parameters
        )
        assert growth.fossils or same(ours, plain(150, **RESTLESS))
