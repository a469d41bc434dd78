"""One step for the optimizers of several seeds."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina.joint_optimizer import JointOptimizer
from esper.kasmina.seed import Seed
from esper.kasmina.shadow import shadow_step
from esper.kasmina.shared import shared_step
from esper.kasmina.slots import find_slots
from support.hosts import classify, mlp, sgd_seed

pytestmark = pytest.mark.usefixtures("quiet")


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "looped": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False, fused=False),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_joint_step_is_the_step_of_each_and_each_keeps_its_own_state(name: str) -> None:
    model, x = mlp(), torch.randn(8, 6)
    slot = find_slots(model, lambda: model(x)).slots["0"]
    seeds = [sgd_seed(slot, nn.Linear(8, 8), number) for number in range(4)]
    alone = [sgd_seed(slot, copy.deepcopy(seed.body), seed.id) for seed in seeds]
    for seed in (*seeds, *alone):
        seed.optimizer = OPTIMIZERS[name](seed.parameters)
    slow = OPTIMIZERS[name](seeds[3].parameters)
    slow.param_groups[0]["lr"] = alone[3].optimizer.param_groups[0]["lr"] = 1e-4
    seeds[3].optimizer = slow
    joint = JointOptimizer(seeds)
    for step in range(4):
        for seed, other in zip(seeds, alone, strict=True):
            for p, q in zip(seed.parameters, other.parameters, strict=True):
                p.grad = torch.randn(p.shape) if (step, seed.id) != (1, 2) else None
                q.grad = None if p.grad is None else p.grad.clone()
            if step == 2:
                seed.optimizer.step()
            other.optimizer.step()
        if step != 2:
            joint.step()
    for seed, other in zip(seeds, alone, strict=True):
        for p, q in zip(seed.parameters, other.parameters, strict=True):
            assert torch.allclose(p, q, rtol=1e-5, atol=1e-7)
            mine, theirs = seed.optimizer.state[p], other.optimizer.state[q]
            assert mine.keys() == theirs.keys()
            for key, value in mine.items():
                assert torch.allclose(torch.as_tensor(value), torch.as_tensor(theirs[key]), 1e-4)
    assert all(parameter.grad is None for seed in seeds for parameter in seed.parameters)


@pytest.mark.parametrize("name", ["sgd", "adam", "adagrad"])
def test_parameters_of_half_precision_learn(name: str) -> None:
    model, x = mlp(), torch.randn(8, 6)
    slot = find_slots(model, lambda: model(x)).slots["0"]
    seeds = [sgd_seed(slot, nn.Linear(8, 8).bfloat16(), number) for number in range(2)]
    alone = [sgd_seed(slot, copy.deepcopy(seed.body), seed.id) for seed in seeds]
    for seed in (*seeds, *alone):
        seed.optimizer = OPTIMIZERS[name](seed.parameters)
    for seed, other in zip(seeds, alone, strict=True):
        for p, q in zip(seed.parameters, other.parameters, strict=True):
            p.grad = torch.randn(p.shape).bfloat16()
            q.grad = p.grad.clone()
        other.optimizer.step()
    before = [p.detach().clone() for seed in seeds for p in seed.parameters]
    JointOptimizer(seeds).step()
    after = [p for seed in seeds for p in seed.parameters]
    wanted = [p for other in alone for p in other.parameters]
    for old, new, other in zip(before, after, wanted, strict=True):
        assert not torch.equal(old, new) and torch.allclose(new, other, rtol=2e-2, atol=2e-3)


class Products(nn.Module):
    """Its weight's gradient is laid out the other way round than the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x.unsqueeze(0), self.weight.t().unsqueeze(0)).squeeze(0)


def test_a_gradient_of_another_layout_is_not_misread_by_a_fused_optimizer() -> None:
    model, x = mlp(), torch.randn(8, 6)
    slot = find_slots(model, lambda: model(x)).slots["0"]
    bodies = [Products() for _ in range(2)]
    (gradient,) = torch.autograd.grad(bodies[0](x @ torch.randn(6, 8)).sum(), bodies[0].weight)
    assert gradient.stride() != bodies[0].weight.stride()

    def seeds(*, fused: bool) -> list[Seed]:
        found = [Seed(n, slot, "test", copy.deepcopy(body)) for n, body in enumerate(bodies)]
        for seed in found:
            seed.optimizer = torch.optim.Adam(seed.parameters, lr=0.1, fused=fused or None)
        return found

    batch = (x, torch.arange(8) % 3)
    shared, alone, plain = seeds(fused=False), seeds(fused=True), seeds(fused=False)
    shared_step(model, shared, classify(model), batch, 5, JointOptimizer(shared))
    for seed in (*alone, *plain):
        shadow_step(model, seed, classify(model), batch, 5)
    for wanted, *others in zip(plain, shared, alone, strict=True):
        for other in others:
            assert torch.allclose(other.parameters[0], wanted.parameters[0], 1e-5, 1e-6)
