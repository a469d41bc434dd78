"""The fork: the host as it would be without the seed, to the bit, inside the same objects."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from esper.kasmina._lattice import AlphaSchedule
from esper.kasmina.branch import Branch, hyperparameters_of
from esper.kasmina.host_optimizer import seed_optimizer
from esper.kasmina.host_update import HostUpdate
from esper.kasmina.isolation import seed_everything
from esper.kasmina.lattice import Lattice
from esper.kasmina.random_state import RandomState
from esper.kasmina.seed import Seed
from esper.kasmina.shadow import shadow_step
from esper_events.stages import Stage
from support.hosts import Bits, bits, classify, differing, mlp, noise_body

pytestmark = pytest.mark.usefixtures("quiet")

BEFORE, AFTER = 6, 12

Optimizers: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01)),
}
Schedules: dict[str, Callable[[torch.optim.Optimizer], LRScheduler]] = {
    "none": lambda o: LambdaLR(o, lambda _: 1.0),
    "lambda": lambda o: LambdaLR(o, lambda step: 0.9**step),
    "one cycle": lambda o: OneCycleLR(o, 0.1, total_steps=60),
}


class Counting(nn.Module):
    """Draws from a generator of its own and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.noise = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + torch.randn(x.shape, generator=self.noise) / self.calls


@dataclass
class Loop:
    """A user's loop: private batches, dropout, BatchNorm, clipping, a scheduler each step."""

    optimizer_name: str = "sgd"
    schedule_name: str = "none"
    clear_first: bool = False
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        seed_everything(4)
        self.model = nn.Sequential(*mlp(), Counting())
        self.optimizer = Optimizers[self.optimizer_name](self.model.parameters())
        self.scheduler = Schedules[self.schedule_name](self.optimizer)
        self.loss_fn = classify(self.model)
        self.draws = torch.Generator().manual_seed(9)

    def update(self, loss: Tensor) -> None:
        if self.clear_first:
            self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.optimizer.step()
        if not self.clear_first:
            self.optimizer.zero_grad()

    def batch(self) -> tuple[Tensor, Tensor]:
        x = torch.randn(16, 6, generator=self.draws)
        return x, torch.randint(3, (16,), generator=self.draws)

    def step(self, batch: tuple[Tensor, Tensor]) -> None:
        loss = self.loss_fn(batch)
        self.update(loss)
        self.scheduler.step()
        self.losses.append(float(loss.detach()))


def alone(loop: Loop) -> Loop:
    for _ in range(BEFORE + AFTER):
        loop.step(loop.batch())
    return loop


@dataclass
class Forked:
    """The same loop, with a seed grafted after some steps and a fork that follows."""

    loop: Loop

    def __post_init__(self) -> None:
        loop = self.loop
        for _ in range(BEFORE):
            loop.step(loop.batch())
        with torch.random.fork_rng():
            probe = torch.randn(4, 6)
            self.lattice = Lattice(loop.model, loop.optimizer, lambda: loop.model(probe))
            slot = self.lattice.map.slots["0..4"]
            self.seed = Seed(0, slot, "test", noise_body(slot))
            host = list(loop.model.get_submodule(slot.end).parameters())
            self.seed.optimizer = seed_optimizer(loop.optimizer, self.seed.trainable, host, 1.0)
            for step in range(3):
                shadow_step(
                    loop.model, self.seed, loop.loss_fn, (probe, torch.zeros(4).long()), step
                )
        self.lattice.germinate(self.seed)
        self.lattice.advance(self.seed, Stage.TRAINING)
        self.branch = Branch(loop.model, loop.optimizer, HostUpdate(loop.update))
        self.lattice.start_graft(self.seed, AlphaSchedule(5))
        self.fork_losses: list[float] = []

    def train(self) -> Forked:
        loop = self.loop
        for _ in range(AFTER):
            batch, start = loop.batch(), RandomState()
            used = [hyperparameters_of(group) for group in loop.optimizer.param_groups]
            loop.step(batch)
            loss = self.branch.step(loop.loss_fn, batch, start, used)
            self.fork_losses.append(loss)
            self.lattice.tick()
        return self

    def adopt(self) -> None:
        self.lattice.remove(self.seed)
        self.branch.adopt()


def state(loop: Loop) -> Bits:
    found = bits(loop.model, loop.optimizer)
    counting = loop.model[5]
    found["counting"] = f"{counting.calls} {counting.noise.get_state().tolist()}"
    groups = [hyperparameters_of(group) for group in loop.optimizer.param_groups]
    found["groups"] = repr(groups)
    # The text of a module's attributes may hold addresses; gradients are cleared by the next step.
    skipped = ("attributes 5", "grad ")
    return {name: value for name, value in found.items() if not name.startswith(skipped)}


@pytest.mark.parametrize("clear_first", [False, True])
@pytest.mark.parametrize("schedule", Schedules)
@pytest.mark.parametrize("optimizer", Optimizers)
def test_the_fork_is_the_host_alone_and_adopted_it_stays_so(
    optimizer: str, schedule: str, clear_first: bool
) -> None:
    host = alone(Loop(optimizer, schedule, clear_first))
    forked = Forked(Loop(optimizer, schedule, clear_first)).train()
    assert forked.fork_losses == host.losses[BEFORE:]
    assert forked.loop.losses != host.losses, "the seed made a difference"
    with forked.branch.entered():
        assert differing(state(host), state(forked.loop)) == []
    forked.adopt()
    assert differing(state(host), state(forked.loop)) == []
    assert list(forked.loop.model.state_dict()) == list(host.model.state_dict())
    start = RandomState()
    for loop in (host, forked.loop):
        start.restore()
        loop.step(loop.batch())
    assert host.losses[-1] == forked.loop.losses[-1]
    assert differing(state(host), state(forked.loop)) == []


def test_objects_keep_their_identity_through_graft_fork_and_adoption() -> None:
    loop = Loop("adam")
    modules, parameters = list(loop.model.modules()), list(loop.model.parameters())
    members = list(map(id, loop.optimizer.param_groups[0]["params"]))
    Forked(loop).train().adopt()
    assert list(map(id, loop.model.modules())) == list(map(id, modules))
    assert list(map(id, loop.model.parameters())) == list(map(id, parameters))
    assert list(map(id, loop.optimizer.param_groups[0]["params"])) == members
    assert {id(p) for p in loop.optimizer.state} == set(members)


@pytest.mark.parametrize("fails", [False, True])
def test_leaving_the_fork_restores_everything(fails: bool) -> None:
    forked = Forked(Loop("adamw tensor lr", "lambda", clear_first=True)).train()
    loop, batch = forked.loop, forked.loop.batch()
    before, groups = bits(loop.model, loop.optimizer), loop.optimizer.param_groups
    rates = [id(group["lr"]) for group in groups]
    memory = [p.data_ptr() for p in loop.model.parameters()]

    def inside() -> None:
        with forked.branch.entered():
            loop.update(loop.loss_fn(batch))
            groups[0]["lr"] = torch.tensor(9.0)
            torch.rand(3)
            if fails:
                raise ZeroDivisionError

    if fails:
        with pytest.raises(ZeroDivisionError):
            inside()
    else:
        inside()
    assert differing(before, bits(loop.model, loop.optimizer)) == []
    assert [id(group["lr"]) for group in groups] == rates
    assert [p.data_ptr() for p in loop.model.parameters()] == memory


def test_the_seeds_gradient_takes_no_part_in_the_fork_and_comes_back() -> None:
    forked = Forked(Loop(clear_first=True)).train()
    gradients = {p: p.grad for p in forked.seed.parameters}
    assert all(gradient is not None for gradient in gradients.values())
    with forked.branch.entered():
        assert all(p.grad is None for p in forked.loop.model.parameters())
        forked.loop.model.zero_grad()
    assert all(p.grad is gradient for p, gradient in gradients.items())


def test_the_users_modes_hold_in_the_fork_too() -> None:
    forked = Forked(Loop())
    model = forked.loop.model
    model[1].eval()
    with forked.branch.entered():
        assert not model[1].training
    assert [model.training, model[1].training] == [True, False]


def test_a_branch_of_an_untrained_optimizer_has_no_state_to_share() -> None:
    loop = Loop("adam")
    branch = Branch(loop.model, loop.optimizer, HostUpdate(loop.update))
    loop.step(loop.batch())
    trained = copy.deepcopy(dict(loop.optimizer.state))
    with branch.entered():
        assert not loop.optimizer.state
    assert len(loop.optimizer.state) == len(trained)
