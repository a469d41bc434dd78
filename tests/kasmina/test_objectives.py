"""Local objectives: the regressions that they are, on one pass for all seeds, without a trace."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from esper.kasmina import objectives
from esper.kasmina.check import reachable_leaves
from esper.kasmina.errors import ObjectiveError
from esper.kasmina.isolation import HostGuard
from esper.kasmina.joint_optimizer import JointOptimizer
from esper.kasmina.objectives import NOISE, STEP, local_step
from esper.kasmina.onward import find_onward
from esper.kasmina.seed import Seed
from esper.kasmina.slots import find_slots
from esper_events.events import LocalObjective
from support.hosts import HOSTS, Checkpointed, Loss, bits, classify, differing, mlp, noise_body

pytestmark = pytest.mark.usefixtures("quiet")

LOCAL: tuple[LocalObjective, ...] = get_args(LocalObjective)
RATE = 0.1


def seed_in(
    model: nn.Module,
    x: Tensor,
    slot: str,
    objective: LocalObjective,
    number: int = 0,
    body: nn.Module | None = None,
) -> Seed:
    slots = find_slots(model, lambda: model(x)).slots
    body = noise_body(slots[slot]) if body is None else body
    seed = Seed(number, slots[slot], "test", body, objective=objective)
    seed.optimizer = torch.optim.SGD(body.parameters(), lr=RATE)
    if objective == "next_layer":
        seed.onward = find_onward(model, seed.slot, slots, lambda: model(x))
    return seed


def step(
    model: nn.Module, seeds: list[Seed], loss_fn: Loss, batch: Any, draw: int = 0
) -> list[Any]:
    return local_step(model, seeds, loss_fn, batch, draw, JointOptimizer(seeds))


def smooth() -> tuple[nn.Module, Tensor, Tensor, Loss]:
    """A host in float64 whose gradients are written down by hand below."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))
    model.double()
    x, y = torch.randn(7, 4).double(), torch.randn(7, 2).double()
    return model, x, y, lambda batch: (model(batch[0]) - batch[1]).square().mean()


def by_hand(
    objective: LocalObjective, slot: str, model: Any, x: Tensor, y: Tensor, body: Any
) -> tuple[float, Tensor, Tensor]:
    """The loss and its gradients at the body's weight and bias, from the formulas alone."""
    with torch.no_grad():
        w1, b1, w2, b2, w3, b3 = (p.clone() for p in model.parameters())
        h1 = x @ w1.T + b1
        h2 = torch.tanh(h1) @ w2.T + b2
        out = torch.tanh(h2) @ w3.T + b3
        g2 = (2 * (out - y) / out.numel() @ w3) * (1 - torch.tanh(h2) ** 2)
        g1 = (g2 @ w2) * (1 - torch.tanh(h1) ** 2)
        read = x if ".." in slot else h1
        if objective == "reconstruction" and slot == "0":
            torch.manual_seed(0)
            noise = NOISE * (h1 - h1.mean(0)).square().mean(0).sqrt() * torch.randn_like(h1)
            read = h1 + noise
        given = read @ body.weight.T + body.bias
        jacobian = torch.ones_like(given)
        got, back = given, None
        if objective == "reconstruction":
            wanted = -noise if slot == "0" else h1
        elif objective == "negative_gradient":
            wanted = -STEP * h1.norm() / g1.norm() * g1
        else:
            moved = h1 + given
            got, back = torch.tanh(moved) @ w2.T - torch.tanh(h1) @ w2.T, w2
            jacobian = 1 - torch.tanh(moved) ** 2
            wanted = -STEP * h2.norm() / g2.norm() * g2
        size = wanted.square().sum()
        error = 2 * (got - wanted) / size
        at_body = (error if back is None else error @ back) * jacobian
        loss = float((got - wanted).square().sum() / size)
        return loss, at_body.T @ read, at_body.sum(0)


@pytest.mark.parametrize("slot", ["0", "0..0"])
@pytest.mark.parametrize("objective", LOCAL)
def test_a_step_is_the_one_that_the_formula_gives_in_float64(
    objective: LocalObjective, slot: str
) -> None:
    model, x, y, loss_fn = smooth()
    seed = seed_in(model, x, slot, objective)
    body = copy.deepcopy(seed.body)
    loss, weight, bias = by_hand(objective, slot, model, x, y, body)
    assert step(model, [seed], loss_fn, (x, y)) == [pytest.approx(loss, rel=1e-12)]
    torch.testing.assert_close(seed.body.weight, body.weight - RATE * weight, rtol=0, atol=1e-14)
    torch.testing.assert_close(seed.body.bias, body.bias - RATE * bias, rtol=0, atol=1e-14)


@pytest.mark.parametrize("objective", LOCAL)
def test_a_seed_learns_what_it_is_asked_for(objective: LocalObjective) -> None:
    model, x, y, loss_fn = smooth()
    seed = seed_in(model, x, "0", objective)
    seed.optimizer = torch.optim.Adam(seed.trainable, lr=0.01)
    losses = [step(model, [seed], loss_fn, (x, y))[0] for _ in range(200)]
    assert losses[-1] < 0.8 * min(losses[0], 1.0)
    assert seed.shadow_steps == 200


def setting(model: nn.Module | None = None) -> tuple[nn.Module, Any, Loss]:
    """A host with BatchNorm and dropout, in training."""
    model = mlp() if model is None else model
    batch = torch.randn(16, 6), torch.randint(3, (16,))
    return model, batch, classify(model)


def one_of_each(model: nn.Module, x: Tensor) -> list[Seed]:
    places = [("0", o) for o in LOCAL] + [("0..1", o) for o in LOCAL]
    return [seed_in(model, x, slot, o, number) for number, (slot, o) in enumerate(places)]


def zero(body: nn.Module) -> nn.Module:
    for parameter in body.parameters():
        nn.init.zeros_(parameter)
    return body


@pytest.mark.parametrize("objective", LOCAL)
def test_a_body_that_gives_nothing_misses_all_of_it(objective: LocalObjective) -> None:
    """For the next layer that takes the draws of the pass: its dropout is that of the target."""
    model, batch, loss_fn = setting()
    seed = seed_in(model, batch[0], "1", objective, body=zero(nn.Linear(8, 8)))
    assert step(model, [seed], loss_fn, batch) == [pytest.approx(1.0, rel=1e-5)]


def test_seeds_of_all_objectives_share_one_pass_and_none_knows_of_another() -> None:
    model, batch, plain = setting()
    passes = 0

    def loss_fn(b: Any) -> Tensor:
        nonlocal passes
        passes += 1
        return plain(b)

    together = one_of_each(model, batch[0])
    alone = copy.deepcopy(together)
    losses = step(model, together, loss_fn, batch, draw=5)
    assert passes == 1
    for number, seed in enumerate(alone):
        assert step(model, [seed], loss_fn, batch, draw=5) == [losses[number]]
        assert differing(bits(seed.body), bits(together[number].body)) == []


@pytest.mark.parametrize("objective", LOCAL)
@pytest.mark.parametrize("host", ["mlp", "cnn", "tokens"])
def test_the_host_keeps_its_bits_and_its_gradients(objective: LocalObjective, host: str) -> None:
    model, x = HOSTS[host]()
    batch, loss_fn = (x, torch.randint(3, (len(x),))), classify(model)
    loss_fn(batch).backward()
    slot = {"mlp": "1", "cnn": "1", "tokens": "norm"}[host]
    body = nn.Conv2d(4, 4, 1) if host == "cnn" else None
    seed = seed_in(model, x, slot, objective, body=body)
    before, own = bits(model), bits(seed.body)
    (loss,) = step(model, [seed], loss_fn, batch)
    assert isinstance(loss, float)
    assert differing(before, bits(model)) == []
    assert {"weight", "bias"} <= set(differing(own, bits(seed.body)))
    assert all(parameter.grad is None for parameter in seed.parameters)


def trained(model: nn.Module, seeds: list[Seed], loss_fn: Loss, steps: int) -> dict[str, str]:
    """The bits of a host after ``steps`` of its own, and of ``seeds`` beside it."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(1)
    joint = JointOptimizer(seeds)
    for number in range(steps):
        batch = torch.randn(16, 6, generator=generator), torch.arange(16) % 3
        optimizer.zero_grad()
        loss_fn(batch).backward()
        optimizer.step()
        if seeds:
            found = local_step(model, seeds, loss_fn, batch, number, joint)
            assert all(isinstance(loss, float) for loss in found), found
    return bits(model, optimizer)


def ends_like_the_host_alone(steps: int) -> list[str]:
    ends = []
    for grown in (False, True):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        model, batch, loss_fn = setting()
        seeds = one_of_each(model, batch[0]) if grown else []
        torch.manual_seed(2)
        ends.append(trained(model, seeds, loss_fn, steps))
    return differing(*ends)


def test_a_host_beside_seeds_of_every_objective_ends_with_the_bits_of_the_host_alone() -> None:
    assert ends_like_the_host_alone(200) == []


def _keeps_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lets(HostGuard):
        def __exit__(self, *error: object) -> None:
            state = torch.get_rng_state()
            super().__exit__(*error)
            torch.set_rng_state(state)

    monkeypatch.setattr(objectives, "HostGuard", Lets)


def _shares_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Uncopied(HostGuard):
        def __enter__(self) -> HostGuard:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("esper.kasmina.isolation._copy_buffers", lambda *_: None)
                return super().__enter__()

    monkeypatch.setattr(objectives, "HostGuard", Uncopied)


def _leaves_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two guards of the host's gradients at once: each alone makes the other redundant."""

    grad = torch.autograd.grad

    def backward(loss: Tensor, wanted: list[Any], **more: Any) -> Sequence[Tensor | None]:
        if not isinstance(wanted[0], Tensor):
            return grad(loss, wanted, **more)
        loss.backward()
        return [tensor.grad for tensor in wanted]

    monkeypatch.setattr(objectives, "HostGuard", lambda model: HostGuard(model, freeze=False))
    monkeypatch.setattr(torch.autograd, "grad", backward)


@pytest.mark.parametrize(
    ("remove", "where"),
    [
        (_keeps_generators, "torch"),
        (_shares_buffers, "1.running_mean"),
        (_leaves_gradients, "grad 4.weight"),
    ],
)
def test_without_this_guard_the_host_differs(
    remove: Callable[[pytest.MonkeyPatch], None], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(monkeypatch)
    model, batch, loss_fn = setting()
    seeds = [seed_in(model, batch[0], "1", o, n) for n, o in enumerate(LOCAL)]
    before = bits(model)
    step(model, seeds, loss_fn, batch)
    assert where in differing(before, bits(model))


@pytest.mark.parametrize("objective", LOCAL)
def test_no_host_parameter_is_reachable_from_the_loss(
    objective: LocalObjective, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, loss_fn = setting()
    seed = seed_in(model, batch[0], "0..1", objective)
    losses: list[Tensor] = []
    inner = objectives._loss

    def kept(*args: Any) -> Tensor:
        losses.append(inner(*args))
        return losses[-1]

    monkeypatch.setattr(objectives, "_loss", kept)
    step(model, [seed], loss_fn, batch)
    own = {id(parameter) for parameter in seed.parameters}
    assert {id(leaf) for leaf in reachable_leaves(losses[0])} == own


def test_what_one_seed_raises_is_its_own_fault() -> None:
    model, batch, loss_fn = setting()
    wrong = seed_in(model, batch[0], "0", "negative_gradient", 1, nn.Linear(3, 8))
    narrow = seed_in(model, batch[0], "0", "negative_gradient", 2, nn.Linear(8, 3))
    lost = seed_in(model, batch[0], "0", "negative_gradient", 3)
    lost.objective = "next_layer"
    good = seed_in(model, batch[0], "0", "negative_gradient", 4)
    found = step(model, [wrong, narrow, lost, good], loss_fn, batch)
    assert [type(value) for value in found] == [RuntimeError, ValueError, ObjectiveError, float]
    assert "its body gave [16, 3], wanted the slot's [16, 8]" in str(found[1])
    assert [seed.shadow_steps for seed in (wrong, narrow, lost, good)] == [0, 0, 0, 1]


def test_a_loss_that_does_not_depend_on_the_slot_says_so() -> None:
    model, batch, _ = setting()

    def loss_fn(b: Any) -> Tensor:
        model(b[0])
        return torch.zeros((), requires_grad=True) * 1.0

    seeds = [seed_in(model, batch[0], "0", o, n) for n, o in enumerate(LOCAL)]
    found = step(model, seeds, loss_fn, batch)
    told = [str(value) for value in found if isinstance(value, ObjectiveError)]
    assert told == ["the loss does not depend on slot '0'", "the loss does not depend on slot '1'"]


def test_where_nothing_is_wanted_nothing_is_divided_by_zero() -> None:
    model, batch, _ = setting()
    seed = seed_in(model, batch[0], "0", "negative_gradient")
    (loss,) = step(model, [seed], lambda b: model(b[0]).sum() * 0.0, batch)
    assert 0.0 < loss < float("inf")


@pytest.mark.parametrize("objective", LOCAL)
def test_autocast_and_checkpointing_hosts_teach_seeds_too(objective: LocalObjective) -> None:
    model, x = Checkpointed(), torch.randn(8, 4)
    found = []
    for model.saving in (False, True):
        torch.manual_seed(1)
        seed = seed_in(model, x, "a.0", objective)
        found.append(step(model, [seed], lambda b: model(b).square().mean(), x))
    assert found[0] == found[1]

    def autocast_loss(b: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(b).float().square().mean()

    torch.manual_seed(1)
    seed = seed_in(model, x, "a.0", objective)
    assert step(model, [seed], autocast_loss, x) == [pytest.approx(found[0][0], rel=0.05)]
