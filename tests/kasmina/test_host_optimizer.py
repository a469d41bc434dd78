"""A seed's parameters in the optimizer and under the schedulers that the user already runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from esper.kasmina._lattice import AlphaSchedule
from esper.kasmina.errors import KasminaError, SlotError
from esper.kasmina.host_optimizer import (
    adopt_parameters,
    drop_parameters,
    host_group,
    seed_optimizer,
)
from esper.kasmina.lattice import Lattice
from esper.kasmina.seed import Seed
from esper.kasmina.shadow import shadow_step
from esper_events.stages import Stage
from support.hosts import classify, mlp, noise_body

pytestmark = pytest.mark.usefixtures("quiet")

BATCH = (torch.randn(16, 6), torch.randint(3, (16,)))
SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.ConstantLR(o, 0.5, 3), lr_scheduler.ExponentialLR(o, 0.9)],
        milestones=[3],
    ),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=40),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1),
}


def trained_seed(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Lattice, Seed]:
    lattice = Lattice(model, optimizer, lambda: model(BATCH[0]))
    slot = lattice.map.slots["0..4"]
    seed = Seed(0, slot, "test", noise_body(slot))
    seed.optimizer = seed_optimizer(optimizer, seed.trainable, list(model[4].parameters()), 0.5)
    lattice.germinate(seed)
    lattice.advance(seed, Stage.TRAINING)
    for step in range(3):
        shadow_step(model, seed, classify(model), BATCH, step)
    return lattice, seed


def train(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = classify(model)(BATCH)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
        scheduler.step(1.0) if plateau else scheduler.step()


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_running_schedulers_go_on_and_drive_the_seed_too(name: str, kind: Any) -> None:
    rates = {}
    for grows in (False, True):
        torch.manual_seed(1)
        model = mlp()
        settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        optimizer = kind(model.parameters(), lr=0.02, **settings)
        scheduler = SCHEDULERS[name](optimizer)
        train(model, optimizer, scheduler, 4)
        if grows:
            lattice, seed = trained_seed(model, optimizer)
            moments = {p: dict(seed.optimizer.state[p]) for p in seed.trainable}
            lattice.start_graft(seed, AlphaSchedule(4)).alpha.fill_(0.5)
            assert all(optimizer.state[p].keys() == m.keys() for p, m in moments.items())
            assert all(
                optimizer.state[p][k] is value for p, m in moments.items() for k, value in m.items()
            )
            weights = [p.detach().clone() for p in seed.parameters]
        train(model, optimizer, scheduler, 8)
        assert len(optimizer.param_groups) == 1
        rates[grows] = optimizer.param_groups[0]["lr"]
        optimizer.load_state_dict(optimizer.state_dict())
    assert rates[True] == rates[False]
    assert not any(torch.equal(p, w) for p, w in zip(seed.parameters, weights, strict=True))
    lattice.remove(seed)
    assert {id(p) for p in optimizer.state} == {id(p) for p in model.parameters()}
    assert optimizer.param_groups[0]["params"] == list(model.parameters())


def test_a_seed_joins_the_group_of_its_slots_module() -> None:
    model = mlp()
    groups = [
        {"params": [*model[0].parameters(), *model[1].parameters()], "lr": 0.1},
        {"params": list(model[4].parameters()), "lr": 0.2, "weight_decay": 0.3},
    ]
    optimizer = torch.optim.AdamW(groups)
    lattice, seed = trained_seed(model, optimizer)
    own = seed.optimizer.param_groups[0]
    assert (own["lr"], own["weight_decay"], own["betas"]) == (0.1, 0.3, (0.9, 0.999))
    lattice.start_graft(seed, AlphaSchedule(4))
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 4]
    assert optimizer.param_groups[1]["params"][2:] == seed.parameters


def test_a_module_without_parameters_falls_back_to_the_first_group() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert host_group(optimizer, []) is optimizer.param_groups[0]


@pytest.mark.parametrize("frozen", [(0, 1, 4), (4,), (0, 1)])
def test_a_seed_on_a_frozen_module_stands_where_the_model_has_it(frozen: tuple[int, ...]) -> None:
    model = mlp()
    for place in frozen:
        model[place].requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained or model.parameters())
    lattice = Lattice(model, optimizer, lambda: model(BATCH[0]))
    slot = lattice.map.slots["0"]
    seed = Seed(0, slot, "test", noise_body(slot))
    lattice.germinate(seed)
    lattice.advance(seed, Stage.TRAINING)
    lattice.start_graft(seed, AlphaSchedule(4))
    wanted = [p for p in model.parameters() if p.requires_grad or not trained]
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in wanted]


def test_frozen_parameters_never_enter_the_optimizer() -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    body = nn.Linear(6, 3).requires_grad_(False)
    assert seed_optimizer(optimizer, [], [], 1.0) is None
    adopt_parameters(optimizer, [], None, list(model[4].parameters()), [])
    drop_parameters(optimizer, list(body.parameters()))
    assert optimizer.param_groups[0]["params"] == list(model.parameters())


def test_lbfgs_is_refused_with_what_to_use_instead() -> None:
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(KasminaError, match="use SGD, Adam, AdamW"):
        seed_optimizer(optimizer, list(model[4].parameters()), [], 1.0)


def test_one_graft_is_tested_at_a_time_and_only_known_slots_germinate() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lattice, seed = trained_seed(model, optimizer)
    lattice.start_graft(seed, AlphaSchedule(4))
    other = Seed(1, lattice.map.slots["0"], "test", nn.Linear(8, 8))
    lattice.germinate(other)
    lattice.advance(other, Stage.TRAINING)
    with pytest.raises(SlotError, match="seed 0 is still blended"):
        lattice.start_graft(other, AlphaSchedule(4))
    gone = lattice.map.slots.pop("4")
    with pytest.raises(SlotError, match="no slot '4'; the host has 0, 1"):
        lattice.germinate(Seed(2, gone, "test", nn.Linear(3, 3)))
