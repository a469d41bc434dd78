"""Seeds that learn and are measured in the shadow of a host that notices nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina.errors import ObjectiveError
from esper.kasmina.graft import GraftedSeed, attach
from esper.kasmina.seed import Seed, evaluating
from esper.kasmina.shadow import LossFunction, held_out_losses, scalar_loss, shadow_step
from esper.kasmina.signature import Slot
from esper.kasmina.slots import find_slots
from support.hosts import HOSTS, bits, classify, differing, mlp, sgd_seed

pytestmark = pytest.mark.usefixtures("quiet")

Batch = tuple[Tensor, Tensor]


def setting(slot: str = "0..4") -> tuple[nn.Module, Batch, Seed]:
    model = mlp()
    batch = torch.randn(16, 6), torch.randint(3, (16,))
    return model, batch, sgd_seed(find_slots(model, lambda: model(batch[0])).slots[slot])


@pytest.mark.parametrize("slot", ["0", "1..4", "0..4"])
def test_a_seed_learns_and_the_host_keeps_its_bits_and_its_gradients(slot: str) -> None:
    model, batch, seed = setting(slot)
    loss_fn = classify(model)
    loss_fn(batch).backward()
    before = bits(model)
    losses = [shadow_step(model, seed, loss_fn, batch, random_seed=0) for _ in range(40)]
    assert losses[-1] < 0.9 * losses[0]
    assert seed.shadow_steps == 40
    assert differing(before, bits(model)) == []
    assert all(parameter.grad is None for parameter in seed.parameters)


def test_a_pass_is_a_function_of_its_random_seed_alone() -> None:
    model, batch, seed = setting()
    seed.optimizer = None
    first = shadow_step(model, seed, classify(model), batch, random_seed=1)
    torch.randn(3)
    assert shadow_step(model, seed, classify(model), batch, random_seed=1) == first
    assert shadow_step(model, seed, classify(model), batch, random_seed=2) != first


def test_a_seed_that_learns_nothing_is_measured_all_the_same() -> None:
    model, batch, seed = setting()
    seed.body.requires_grad_(False)
    before = bits(seed.body)
    assert math.isfinite(shadow_step(model, seed, classify(model), batch, 0))
    assert differing(before, bits(seed.body)) == []


def test_a_criterion_with_parameters_of_its_own_is_left_alone() -> None:
    model, batch, seed = setting()
    scale = nn.Parameter(torch.ones(3))

    def loss_fn(b: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(b[0]) * scale, b[1])

    loss_fn(batch).backward()
    gradient = scale.grad.clone()
    shadow_step(model, seed, loss_fn, batch, 0)
    assert torch.equal(scale.grad, gradient)
    assert torch.equal(scale, torch.ones(3))
    assert scale.requires_grad


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ((torch.zeros(()), 1), "returned tuple"),
        (torch.zeros(3), r"returned a tensor of shape \(3,\)"),
        (torch.tensor(3), r"returned a tensor of shape \(\)"),
        (3, "returned int"),
        (None, "returned NoneType"),
    ],
)
def test_a_loss_that_is_no_scalar_is_refused_and_leaves_no_trace(value: object, got: str) -> None:
    model, batch, seed = setting()
    before = bits(model)

    def loss_fn(b: Batch) -> Tensor:
        model(b[0])
        return value  # type: ignore[return-value]

    for run in (
        lambda: shadow_step(model, seed, loss_fn, batch, 0),
        lambda: held_out_losses(model, loss_fn, [batch], seed),
    ):
        with pytest.raises(ObjectiveError, match=got):
            run()
    assert differing(before, bits(model)) == []


def test_one_element_is_a_scalar() -> None:
    assert scalar_loss(torch.ones(1, 1)).shape == ()


def test_a_loss_that_is_no_number_comes_back_as_one_and_spares_the_host() -> None:
    model, batch, seed = setting()
    with torch.no_grad():
        seed.body.weight.fill_(math.nan)
    before = bits(model)
    assert math.isnan(shadow_step(model, seed, classify(model), batch, 0))
    assert math.isnan(held_out_losses(model, classify(model), [batch], seed)[0])
    assert differing(before, bits(model)) == []


def test_held_out_losses_are_those_of_evaluation_mode_and_modes_return() -> None:
    model, batch, seed = setting()
    model[1].eval()
    seed.body.add_module("noise", nn.Dropout())
    before, modes = bits(model), [m.training for m in model.modules()]
    plain = held_out_losses(model, classify(model), [batch, batch])
    grown = held_out_losses(model, classify(model), [batch], seed)
    assert modes == [m.training for m in model.modules()]
    assert differing(before, bits(model)) == []
    assert seed.body.noise.training
    with evaluating(model, seed.body):
        assert not seed.body.noise.training
        out = model(batch[0])
        assert plain == [float(nn.functional.cross_entropy(out, batch[1]))] * 2
        out = out + seed.body(batch[0])
        assert grown == [float(nn.functional.cross_entropy(out, batch[1]))]


@pytest.mark.parametrize("name", HOSTS)
def test_what_the_shadow_predicts_is_what_the_graft_gives(name: str) -> None:
    model, x = HOSTS[name]()
    batch, loss_fn = (x, torch.randint(3, (len(x),))), classify(model)
    slots: dict[str, Slot] = find_slots(model, lambda: model(x)).slots
    slot = {"mlp": "0..4", "cnn": "6", "tokens": "norm..mix"}[name]
    seed = sgd_seed(slots[slot])
    predicted = held_out_losses(model, loss_fn, [batch], seed)
    graft = GraftedSeed(seed.body, seed.slot)
    graft.alpha.fill_(1.0)
    attach(model, graft, "0", seed.slot.start, seed.slot.end)
    assert held_out_losses(model, loss_fn, [batch]) == pytest.approx(predicted, rel=1e-6)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_host_sees_the_seed_and_is_never_compiled_again_for_it(backend: str) -> None:
    torch._dynamo.reset()
    model, batch, seed = setting()
    loss_fn: LossFunction = classify(torch.compile(model, backend=backend))
    plain_loss = classify(model)
    loss_fn(batch).backward()
    model.zero_grad()
    before = bits(model)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(3):
            shadow_step(model, seed, loss_fn, batch, step)
            grown = held_out_losses(model, loss_fn, [batch], seed)
            assert grown == held_out_losses(model, plain_loss, [batch], seed)
            plain = held_out_losses(model, loss_fn, [batch])
            assert plain == held_out_losses(model, plain_loss, [batch]) != grown
        assert differing(before, bits(model)) == []
        loss_fn(batch).backward()
