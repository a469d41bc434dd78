"""Optimizers and schedulers of the user's own go on as if nothing had grown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import SWALR

from esper.kasmina.errors import KasminaError
from esper_events.stages import Stage
from support.growth_runs import FAST, Loop, OneSeed, bits, same, stages

STEPS = 70
SLOT = ("layer1..head", "widen")
CULLED = Stage.EVALUATING

Make = Callable[[optim.Optimizer], Any]

SCHEDULERS: dict[str, Make] = {
    "LambdaLR": lambda o: schedules.LambdaLR(o, lambda step: 0.97**step),
    "MultiplicativeLR": lambda o: schedules.MultiplicativeLR(o, lambda _: 0.98),
    "StepLR": lambda o: schedules.StepLR(o, 9),
    "MultiStepLR": lambda o: schedules.MultiStepLR(o, [10, 31, 50]),
    "ConstantLR": lambda o: schedules.ConstantLR(o, 0.3, 30),
    "LinearLR": lambda o: schedules.LinearLR(o, 0.1, total_iters=40),
    "ExponentialLR": lambda o: schedules.ExponentialLR(o, 0.98),
    "PolynomialLR": lambda o: schedules.PolynomialLR(o, 60, 2.0),
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, 25),
    "CosineAnnealingWarmRestarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 7, 2),
    "CyclicLR": lambda o: schedules.CyclicLR(o, 0.001, 0.02, 8, cycle_momentum=True),
    "OneCycleLR": lambda o: schedules.OneCycleLR(o, 0.02, total_steps=STEPS + 1),
    "ReduceLROnPlateau": lambda o: schedules.ReduceLROnPlateau(o, patience=2, cooldown=3),
    "SequentialLR": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1), schedules.CosineAnnealingLR(o, 20)], [12]
    ),
    "ChainedScheduler": lambda o: schedules.ChainedScheduler(
        [schedules.ExponentialLR(o, 0.99), schedules.StepLR(o, 20)]
    ),
    "SWALR": lambda o: SWALR(o, 0.002, anneal_epochs=20),
}

OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "SGD": lambda p: optim.SGD(p, lr=0.01),
    "SGD momentum": lambda p: optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "Adam": lambda p: optim.Adam(p, lr=0.01, amsgrad=True),
    "Adam fused": lambda p: optim.Adam(p, lr=0.01, fused=True),
    "Adam foreach": lambda p: optim.Adam(p, lr=0.01, foreach=True),
    "Adam tensor lr": lambda p: optim.Adam(p, lr=torch.tensor(0.01)),
    "AdamW": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "NAdam": lambda p: optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: optim.RAdam(p, lr=0.01),
    "Adamax": lambda p: optim.Adamax(p, lr=0.01),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.01, lr_decay=0.01),
    "Adadelta": lambda p: optim.Adadelta(p, lr=0.5),
    "ASGD": lambda p: optim.ASGD(p, lr=0.01, t0=20),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
    "Rprop": lambda p: optim.Rprop(p, lr=0.01),
    "Adafactor": lambda p: optim.Adafactor(p, lr=0.01),
}


class Scheduled(Loop):
    """The loop of these tests with an optimizer and a scheduler of the test's choice."""

    def __init__(
        self, make: Callable[[Any], optim.Optimizer], schedule: Make | None = None
    ) -> None:
        super().__init__(batchnorm=True, dropout=0.2)
        self.optimizer = make(self.model.parameters())
        self.scheduler = None if schedule is None else schedule(self.optimizer)
        self.rates: list[tuple[object, ...]] = []
        self.update: Callable[[Tensor], None] = self.plain_update

    def plain_update(self, loss: Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def run(self, steps: int, **_: Any) -> None:
        self.model.train()
        for _ in range(steps):
            batch = self.batches[self.steps % len(self.batches)]
            self.steps += 1
            loss = self.loss_fn(batch)
            self.update(loss)
            (group,) = self.optimizer.param_groups
            momentum = group.get("momentum", group.get("betas"))
            self.rates.append((float(group["lr"]), momentum))
            if self.growth is not None:
                self.growth.step(batch, loss.detach())
            if isinstance(self.scheduler, schedules.ReduceLROnPlateau):
                self.scheduler.step(1.0)
            elif self.scheduler is not None:
                self.scheduler.step()


def sgd(parameters: Any) -> optim.Optimizer:
    return optim.SGD(parameters, lr=0.01, momentum=0.9)


def test_the_table_names_every_scheduler_and_optimizer_of_torch() -> None:
    known = {name for name in schedules.__all__ if name != "LRScheduler"} | {"SWALR"}
    assert set(SCHEDULERS) == known
    classes = {name for name, kind in vars(optim).items() if isinstance(kind, type)}
    tested = {name.split()[0] for name in OPTIMIZERS}
    assert classes - {"Optimizer"} == tested | set(REFUSED)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_gives_the_rates_that_it_gives_without_growth(name: str) -> None:
    alone, grown = Scheduled(sgd, SCHEDULERS[name]), Scheduled(sgd, SCHEDULERS[name])
    alone.run(STEPS)
    growth = grown.grow(FAST, OneSeed(*SLOT))
    grown.run(STEPS)
    growth.close()
    assert stages(growth.records())[-1] == "fossilized"
    assert grown.rates == alone.rates
    assert name == "ConstantLR" or len(set(grown.rates)) > 2
    assert len(grown.optimizer.param_groups) == 1


@pytest.mark.parametrize("name", SCHEDULERS)
def test_under_every_scheduler_a_cull_by_the_fork_ends_as_if_nothing_had_grown(name: str) -> None:
    alone = Scheduled(sgd, SCHEDULERS[name])
    alone.run(STEPS)
    wanted = bits(alone)
    grown = Scheduled(sgd, SCHEDULERS[name])
    growth = grown.grow(FAST, OneSeed(*SLOT, CULLED))
    grown.run(STEPS)
    growth.close()
    assert "evaluating" in stages(growth.records())
    assert grown.rates == alone.rates
    assert same(bits(grown), wanted)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_keeps_its_state_objects_across_a_growth(name: str) -> None:
    loop = Scheduled(OPTIMIZERS[name])
    host = list(loop.model.parameters())
    loop.run(3)
    before = {p: loop.optimizer.state[p] for p in host if p in loop.optimizer.state}
    growth = loop.grow(FAST, OneSeed(*SLOT))
    loop.run(STEPS)
    growth.close()
    assert stages(growth.records())[-1] == "fossilized"
    optimizer = loop.optimizer
    assert all(optimizer.state[p] is entries for p, entries in before.items())
    seed = [p for p in loop.model.parameters() if not any(p is own for own in host)]
    assert len(seed) == 4
    kinds = {tuple(sorted(optimizer.state.get(p, {}))) for p in loop.model.parameters()}
    assert len(kinds) <= (2 if name == "Adafactor" else 1)  # vectors and matrices differ there
    assert optimizer.param_groups[0]["params"] == list(loop.model.parameters())
    twin = OPTIMIZERS[name](loop.model.parameters())
    twin.load_state_dict(optimizer.state_dict())
    for p in loop.model.parameters():
        mine, theirs = optimizer.state.get(p, {}), twin.state.get(p, {})
        for kind, value in mine.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[kind]))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_after_a_cull_by_the_fork_every_optimizer_is_as_if_nothing_had_grown(name: str) -> None:
    alone = Scheduled(OPTIMIZERS[name])
    alone.run(STEPS)
    wanted = bits(alone)
    grown = Scheduled(OPTIMIZERS[name])
    host = list(grown.model.parameters())
    growth = grown.grow(FAST, OneSeed(*SLOT, CULLED))
    grown.run(STEPS)
    growth.close()
    assert "evaluating" in stages(growth.records())
    assert grown.optimizer.param_groups[0]["params"] == host
    assert set(grown.optimizer.state) <= set(host)
    assert same(bits(grown), wanted)


def clipped(loop: Scheduled) -> Callable[[Tensor], None]:
    """Backward, clipping of all of the model's gradients, and a step."""

    def update(loss: Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(loop.model.parameters(), 0.1)
        loop.optimizer.step()
        loop.optimizer.zero_grad()

    return update


def scaled(loop: Scheduled) -> Callable[[Tensor], None]:
    """What torch's documentation does with a gradient scaler and clipping."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=10)

    def update(loss: Tensor) -> None:
        scaler.scale(loss).backward()
        scaler.unscale_(loop.optimizer)
        nn.utils.clip_grad_norm_(loop.model.parameters(), 0.1)
        scaler.step(loop.optimizer)
        scaler.update()
        loop.optimizer.zero_grad()

    return update


@pytest.mark.parametrize("how", [clipped, scaled])
@pytest.mark.parametrize("cull_in", [None, CULLED])
def test_the_fork_is_trained_by_the_users_own_update(how: Any, cull_in: Stage | None) -> None:
    alone = Scheduled(sgd)
    alone.update = how(alone)
    alone.run(STEPS)
    wanted = bits(alone)
    grown = Scheduled(sgd)
    grown.update = how(grown)
    growth = grown.grow(FAST, OneSeed(*SLOT, cull_in), update=grown.update)
    grown.run(STEPS)
    growth.close()
    assert same(bits(grown), wanted) == (cull_in is not None)
    assert stages(growth.records())[-1] == ("dormant" if cull_in else "fossilized")


class NeedsMore(optim.SGD):
    """An optimizer that cannot be made from its own settings."""

    def __init__(self, params: Any, budget: int, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.budget = budget


class Lopsided(optim.LBFGS):
    """A user's subclass of an optimizer that is refused."""


REFUSED: dict[str, tuple[Callable[[nn.Module], optim.Optimizer], str]] = {
    "LBFGS": (lambda m: Lopsided(m.parameters()), "LBFGS treats all parameters as one vector"),
    "SparseAdam": (lambda m: optim.SparseAdam(m.parameters()), "SparseAdam takes sparse grad"),
    "Muon": (
        lambda m: optim.Muon([p for p in m.parameters() if p.dim() == 2]),
        "Muon takes matrices alone",
    ),
}


@pytest.mark.parametrize("name", [*REFUSED, "a user's own"])
def test_optimizers_that_no_seed_can_join_are_refused_before_anything_happens(name: str) -> None:
    make, reason = REFUSED.get(
        name,
        (lambda m: NeedsMore(m.parameters(), 3, lr=0.1), "a seed needs a NeedsMore of its own"),
    )
    loop = Loop()
    loop.optimizer = make(loop.model)
    with pytest.raises(KasminaError, match=rf"{reason}.*; use SGD, Adam, AdamW or another"):
        loop.grow(FAST, OneSeed(*SLOT))


def test_a_group_of_the_models_own_parameters_may_come_while_a_graft_is_tested() -> None:
    def trained(growing: bool) -> Loop:
        loop = Loop(batchnorm=True)
        late = list(loop.model.head.parameters())  # type: ignore[union-attr]
        early = [p for p in loop.model.parameters() if not any(p is q for q in late)]
        loop.model.head.requires_grad_(False)  # type: ignore[union-attr]
        loop.optimizer = optim.Adam(early, lr=0.01)
        growth = loop.grow(FAST, OneSeed("layer1", "low_rank", CULLED)) if growing else None
        loop.run(28)
        assert growth is None or (growth.engine and growth.engine.transitions.fork)
        loop.model.head.requires_grad_(True)  # type: ignore[union-attr]
        loop.optimizer.add_param_group({"params": late, "lr": 0.02})
        loop.run(50)
        if growth is not None:
            growth.close()
            assert "evaluating" in stages(growth.records())
        return loop

    assert same(bits(trained(growing=True)), bits(trained(growing=False)))


def test_parameters_that_the_fork_cannot_know_are_refused_in_words() -> None:
    loop = Loop()
    loop.grow(FAST, OneSeed(*SLOT))
    loop.run(28)
    loop.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(
        KasminaError, match="add_param_group brought parameters.*nothing is grafted"
    ):
        loop.run(1)
