"""The proof, before a seed may train, that it keeps its slot's contract and its host's peace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from esper.blueprints.build import applies, build
from esper.blueprints.library import LIBRARY
from esper.kasmina import check
from esper.kasmina.check import contract_violations, reachable_leaves
from esper.kasmina.isolation import HostGuard
from esper.kasmina.seed import Seed
from esper.kasmina.slots import find_slots
from support.hosts import (
    HOSTS,
    Checkpointed,
    bits,
    classify,
    differing,
    mlp,
    noise_body,
    sgd_seed,
)

pytestmark = pytest.mark.usefixtures("quiet")

Batch = tuple[Tensor, Tensor]


class Wrong(nn.Module):
    """Gives whatever it is told to."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> object:
        return self.output


class Leaking(nn.Module):
    """Computes with a weight of the host."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.own = nn.Linear(8, 8)
        self.borrowed = [weight]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.own(x) + x @ self.borrowed[0].t() @ self.borrowed[0]
        return result


def host() -> tuple[nn.Module, Batch]:
    return mlp(), (torch.randn(8, 6), torch.randint(3, (8,)))


def violations(model: nn.Module, batch: Batch, slot: str, body: nn.Module) -> list[str]:
    found = find_slots(model, lambda: model(batch[0])).slots[slot]
    before = bits(model)
    problems = contract_violations(model, Seed(0, found, "test", body), classify(model), batch)
    assert differing(before, bits(model)) == []
    return problems


@pytest.mark.parametrize("name", HOSTS)
def test_every_library_blueprint_keeps_the_contract_in_every_slot(name: str) -> None:
    model, x = HOSTS[name]()
    batch, tried = (x, torch.randint(3, (len(x),))), set()
    before = bits(model)
    for slot in find_slots(model, lambda: model(x)).slots.values():
        for blueprint in LIBRARY.values():
            if blueprint.source != slot.source or applies(blueprint, slot) is not None:
                continue
            body = build(blueprint, slot, torch.Generator().manual_seed(1))
            seed = Seed(0, slot, blueprint.id, body)
            assert contract_violations(model, seed, classify(model), batch) == []
            tried.add(blueprint.name)
    assert differing(before, bits(model)) == []
    assert {"low_rank", "bottleneck_mlp", "widen", "gated_widen"} <= tried


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        (torch.zeros(8, 7), "the seed gives shape (8, 7), the slot wants (8, 8)"),
        (torch.zeros(1, 8), "the seed gives shape (1, 8)"),
        ((torch.zeros(8, 8),), "the seed gives tuple, the slot wants a tensor"),
        (None, "the seed gives NoneType"),
    ],
)
def test_a_wrong_output_is_named(output: object, problem: str) -> None:
    model, batch = host()
    (found,) = violations(model, batch, "0", Wrong(output))
    assert found.startswith(problem)


def test_a_body_that_cannot_run_is_a_violation_and_no_crash() -> None:
    model, batch = host()
    (found,) = violations(model, batch, "0", nn.Linear(5, 8))
    assert found.startswith("the seed cannot run on its slot's activation: mat1 and mat2 shapes")


def test_another_dtype_of_the_body_is_cast_to_the_slots() -> None:
    model, batch = host()
    assert violations(model, batch, "0", Wrong(torch.zeros(8, 8, dtype=torch.float64))) == []


class Turned(nn.Linear):
    """Hands on an activation that is no dense block of memory."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).repeat(1, 2)[:, ::2]


def test_an_activation_whose_strides_a_blend_would_change_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    batch = host()[1]
    slot = find_slots(model, lambda: model(batch[0])).slots["0"]
    model[0] = Turned(6, 8)
    seed = Seed(0, slot, "test", noise_body(slot))
    problems = contract_violations(model, seed, classify(model), batch)
    assert problems == ["stride of the blend is (8, 1), the host's is (16, 2)"]


def test_a_body_that_computes_with_a_host_parameter_is_caught() -> None:
    model, batch = host()
    assert violations(model, batch, "0", Leaking(model[4].weight)) == [
        "host parameter 4.weight is reachable from what the seed adds"
    ]


def test_a_body_that_takes_a_host_parameter_as_its_own_is_caught() -> None:
    model, batch = host()
    body = nn.Linear(8, 8)
    body.bias = model[0].bias
    assert violations(model, batch, "0", body) == [
        "host parameter 0.bias is reachable from what the seed adds"
    ]


def test_the_seeds_own_loss_reaches_the_host_as_soon_as_it_is_not_frozen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(check, "HostGuard", lambda model, **_: HostGuard(model, freeze=False))
    model, batch = host()
    problems = violations(model, batch, "4", nn.Linear(3, 3))
    assert "host parameter 0.weight is reachable from the seed's loss" in problems
    assert len(problems) == len(list(model.parameters()))


def test_a_batch_that_does_not_reach_the_slot_is_a_violation() -> None:
    model, batch = host()
    slot = find_slots(model, lambda: model(batch[0])).slots["4"]
    seed = Seed(0, slot, "test", nn.Linear(3, 3))
    problems = contract_violations(model, seed, lambda b: model[0](b[0]).mean(), batch)
    assert problems == ["loss_fn did not reach the slot"]


@pytest.mark.parametrize("slot", ["a.0", "a.2..a.2", "b.0", "a.2..b.0"])
def test_a_checkpointed_host_takes_seeds_that_stay_within_a_block(slot: str) -> None:
    model, x = Checkpointed(), torch.randn(8, 4, requires_grad=True)
    found = find_slots(model, lambda: model(x)).slots[slot]
    problems = contract_violations(model, sgd_seed(found), lambda b: model(b).mean(), x)
    across = ["no gradient can be taken for the seed: a span's end was called before its start"]
    assert [p.split(" in this")[0] for p in problems] == (across if slot == "a.2..b.0" else [])


def test_a_masked_stock_encoder_is_refused_because_of_its_evaluation_mode() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    x, mask = torch.randn(2, 3, 8), torch.tensor([[False, False, True], [False] * 3])
    slot = find_slots(model, lambda: model(x)).slots["layers.0.linear1"]
    for padding, problems in (
        (None, []),
        (mask, [f"in evaluation mode {check._NESTED}"]),
    ):

        def loss_fn(b: Tensor, padding: Tensor | None = padding) -> Tensor:
            result: Tensor = model(b, src_key_padding_mask=padding)
            return result.square().mean()

        assert contract_violations(model, sgd_seed(slot), loss_fn, x) == problems


def test_a_loss_that_does_not_depend_on_the_seed_teaches_it_nothing() -> None:
    model, batch = host()
    slot = find_slots(model, lambda: model(batch[0])).slots["4"]
    seed = Seed(0, slot, "test", nn.Linear(3, 3))
    (problem,) = contract_violations(model, seed, lambda b: model(b[0]).detach().mean(), batch)
    assert problem.startswith("no gradient can be taken for the seed")


def test_an_autocast_host_passes() -> None:
    model, batch = host()

    def loss_fn(b: Batch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return classify(model)(b)

    slots = find_slots(model, lambda: loss_fn(batch)).slots
    for slot in ("0", "0..4"):
        body = build(
            LIBRARY["low_rank" if slot == "0" else "widen"],
            slots[slot],
            torch.Generator().manual_seed(1),
        )
        assert contract_violations(model, Seed(0, slots[slot], "test", body), loss_fn, batch) == []


def test_a_compiled_host_is_checked_like_the_plain_one() -> None:
    model, batch = host()
    compiled = torch.compile(model, backend="eager")
    loss_fn = classify(compiled)
    loss_fn(batch).backward()
    slot = find_slots(model, lambda: model(batch[0])).slots["0"]
    assert contract_violations(model, sgd_seed(slot), loss_fn, batch) == []
    assert contract_violations(model, sgd_seed(slot, nn.Linear(8, 7)), loss_fn, batch) != []


def test_reachable_leaves_are_what_a_backward_pass_would_give_a_gradient() -> None:
    a, b, c = (torch.randn(3, requires_grad=True) for _ in range(3))
    loss = (a * b.detach()).sum() + (c * c).sum()
    assert {id(leaf) for leaf in reachable_leaves(loss)} == {id(a), id(c)}
    assert reachable_leaves(torch.ones(1)) == []


def test_reentrant_checkpointing_and_slots_reached_twice_are_refused_with_what_to_do() -> None:
    model, batch = host()
    slot = find_slots(model, lambda: model(batch[0])).slots["0"]
    seed = Seed(0, slot, "test", nn.Linear(8, 8))

    def twice(b: Batch) -> Tensor:
        return model(b[0]).mean() + model(b[0]).mean()

    assert contract_violations(model, seed, twice, batch) == [
        "loss_fn reached the slot 2 times, wanted once a pass"
    ]

    def reentrant(b: Batch) -> Tensor:
        h = model[:2](b[0])
        return checkpoint(model[2:], h, use_reentrant=True).mean()

    (problem,) = contract_violations(model, seed, reentrant, batch)
    assert "checkpoints activations reentrantly" in problem
    assert "use_reentrant=False" in problem
