"""Slots on attention, whose output is a tuple, in hosts that run batch-first and sequence-first."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina.check import contract_violations
from esper.kasmina.errors import SlotError
from esper.kasmina.graft import GraftedSeed, attach, detach, host_of
from esper.kasmina.seed import Seed, switched_on
from esper.kasmina.shadow import shadow_step
from esper.kasmina.signature import Slot
from esper.kasmina.slots import SlotMap, find_slots
from support.hosts import bits, differing, noise_body, sgd_seed
from support.tensors import same_bits

pytestmark = pytest.mark.usefixtures("quiet")

LENGTH, BATCH, WIDTH = 5, 3, 8


class Attends(nn.Module):
    """Self-attention with everything that it can be asked; the query goes by ``how``."""

    def __init__(self, *, batch_first: bool = True, how: str = "position") -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first)
        self.head = nn.Linear(WIDTH, 3)
        self.how = how
        self.weights: Tensor | None = None

    def forward(self, x: Tensor, **options: object) -> Tensor:
        given = (x,) if self.how == "position" else ()
        named = {} if self.how == "position" else {"query": x}
        h, self.weights = self.attention(*given, **named, key=x, value=x, **options)
        result: Tensor = self.head(h)
        return result


def tokens(batch_first: bool = True) -> Tensor:
    return torch.randn(BATCH, LENGTH, WIDTH) if batch_first else torch.randn(LENGTH, BATCH, WIDTH)


def slots_of(model: nn.Module, *given: Tensor) -> SlotMap:
    return find_slots(model, lambda: model(*given))


def graft(model: nn.Module, slot: Slot, alpha: float, body: nn.Module | None = None) -> GraftedSeed:
    seed = GraftedSeed(noise_body(slot) if body is None else body, slot)
    seed.alpha.fill_(alpha)
    attach(model, seed, "0", slot.start, slot.end)
    return seed


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("how", ["position", "keyword"])
@pytest.mark.parametrize("name", ["attention", "attention..attention", "attention..head"])
def test_a_seed_changes_the_activation_and_nothing_else(
    name: str, how: str, batch_first: bool
) -> None:
    model, x = Attends(batch_first=batch_first, how=how), tokens(batch_first)
    slot = slots_of(model, x).slots[name]
    assert slot.in_shape == (LENGTH, WIDTH)
    assert (slot.in_axis, slot.out_axis, slot.batch_axis) == (1, 1, 0 if batch_first else 1)
    out, weights = model(x), model.weights
    seed = graft(model, slot, 0.0)
    assert same_bits(model(x), out)
    seed.alpha.fill_(0.5)
    h, _ = host_of(model.attention)(x, x, x)
    head = host_of(model.head)
    added = 0.5 * seed.body(x if slot.source == "span" else h)
    wanted = head(h) + added if name.endswith("head") else head(h + added)
    torch.testing.assert_close(model(x), wanted)
    assert same_bits(model.weights, weights)
    detach(model, "0", slot.start, slot.end)
    assert same_bits(model(x), out)


class Sees(nn.Module):
    """Keeps what it is given; adds the sum over everything but the batch, so that order matters."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return self.scale * x.sum(dim=(1, 2), keepdim=True) + torch.zeros_like(x)


@pytest.mark.parametrize("name", ["attention", "attention..attention"])
def test_a_seed_has_the_batch_first_wherever_the_host_has_it(name: str) -> None:
    torch.manual_seed(1)
    first, x = Attends(batch_first=True), tokens()
    second = Attends(batch_first=False)
    second.load_state_dict(first.state_dict())
    found = []
    for model, given in ((first, x), (second, x.transpose(0, 1))):
        slot, body = slots_of(model, given).slots[name], Sees()
        graft(model, slot, 1.0, body)
        out = model(given)
        assert [seen.shape for seen in body.seen] == [(BATCH, LENGTH, WIDTH)]
        found.append(out if model is first else out.transpose(0, 1))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", ["attention", "attention..attention", "attention..head"])
def test_the_shadow_predicts_the_graft_and_leaves_no_trace(name: str, batch_first: bool) -> None:
    model, x = Attends(batch_first=batch_first, how="keyword"), tokens(batch_first)
    model.weights = None

    def loss_fn(batch: Tensor) -> Tensor:
        model.weights = None
        return model(batch, need_weights=False).square().mean()

    seed = sgd_seed(slots_of(model, x).slots[name])
    before = bits(model)
    assert contract_violations(model, seed, loss_fn, x) == []
    shadow_step(model, seed, loss_fn, x, 0)
    with switched_on(model, seed), torch.no_grad():
        predicted = loss_fn(x)
    assert differing(before, bits(model)) == []
    graft(model, seed.slot, 1.0, seed.body)
    torch.testing.assert_close(loss_fn(x), predicted)


def test_masks_and_weights_pass_through() -> None:
    model, x = Attends(), tokens()
    causal = nn.Transformer.generate_square_subsequent_mask(LENGTH)
    padding = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    padding[0, 3:] = True
    options = {"attn_mask": causal, "key_padding_mask": padding, "average_attn_weights": False}
    options["key_padding_mask"] = torch.zeros(BATCH, LENGTH).masked_fill(padding, float("-inf"))
    out, weights = model(x, **options), model.weights
    assert weights.shape == (BATCH, 2, LENGTH, LENGTH)
    graft(model, slots_of(model, x).slots["attention"], 0.0)
    assert same_bits(model(x, **options), out)
    assert same_bits(model.weights, weights)
    model(x, need_weights=False)
    assert model.weights is None


def test_unbatched_and_undecided_layouts_are_left_out_with_the_reason() -> None:
    found = slots_of(Attends(), torch.randn(LENGTH, WIDTH))
    assert found.left_out["attention"] == "activation of shape (5, 8) has no batch dimension"
    square = slots_of(Attends(batch_first=False), torch.randn(4, 4, WIDTH))
    assert list(square.slots) == ["attention", "attention..attention"]
    assert "batch and sequence are of one length here" in square.left_out["head"]
    alone, x = nn.MultiheadAttention(WIDTH, 2), tokens()
    with pytest.raises(SlotError, match="the model: it is the model itself: put it into an nn.Seq"):
        find_slots(alone, lambda: alone(x, x, x))


def encoder(batch_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Decoder(nn.Module):
    """Decodes its input with itself as memory."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(
            WIDTH, 2, 16, dropout=0.0, batch_first=batch_first, norm_first=True
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x, x)
        return result


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("make", [encoder, Decoder])
def test_every_slot_of_stock_transformers_takes_a_seed_in_both_modes(
    make: Callable[[bool], nn.Module], batch_first: bool
) -> None:
    model, x = make(batch_first), tokens(batch_first)
    slots = slots_of(model, x).slots
    kinds = {type(model.get_submodule(slot.end)) for slot in slots.values()}
    blocks = {nn.TransformerEncoderLayer} if make is encoder else set()
    assert kinds == {nn.MultiheadAttention, nn.LayerNorm, nn.Linear, *blocks}
    assert {slot.batch_axis for slot in slots.values()} == {0 if batch_first else 1}
    assert any(slot.start != slot.end and "attn" in slot.end for slot in slots.values())
    for slot in slots.values():
        if slot.source == "span" and slot.start != slot.end and "attn" not in slot.id:
            continue
        assert contract_violations(model, sgd_seed(slot), lambda b: model(b).mean(), x) == []
        for mode in (True, False):
            model.train(mode)
            out = model(x).detach()
            seed = graft(model, slot, 0.0)
            assert same_bits(model(x), out)
            seed.alpha.fill_(1.0)
            with torch.no_grad():
                assert not torch.allclose(model(x), out, atol=1e-4)
            detach(model, "0", slot.start, slot.end)


def test_no_gradient_reaches_the_host_through_a_seed_on_trial() -> None:
    model, x = Attends().double(), tokens().double()
    seed = graft(model, slots_of(model, x).slots["attention..attention"], 1.0)
    x.requires_grad_()
    h = model(x)
    (found,) = torch.autograd.grad(h.sum(), x, retain_graph=True)
    host = model.attention.host
    added = seed.body(x.detach()).detach()
    wanted = model.head(host(x, x, x)[0] + added)
    torch.testing.assert_close(h, wanted)
    torch.testing.assert_close(found, torch.autograd.grad(wanted.sum(), x)[0])


def test_a_compiled_host_sees_a_graft_on_attention() -> None:
    torch._dynamo.reset()
    model, x = Attends(how="keyword"), tokens()
    compiled = torch.compile(model, backend="eager")
    plain = compiled(x, need_weights=False).detach()
    seed = graft(model, slots_of(model, x).slots["attention..attention"], 0.0)
    assert same_bits(compiled(x, need_weights=False), plain)
    seed.alpha.fill_(1.0)
    torch.testing.assert_close(compiled(x, need_weights=False), model(x, need_weights=False))
    assert not torch.allclose(compiled(x, need_weights=False), plain)


def test_a_trial_of_attention_is_told_apart_from_its_bodys_faults() -> None:
    model, x = Attends(batch_first=False), tokens(False)
    slot = slots_of(model, x).slots["attention"]
    for body in (nn.Linear(WIDTH, 7), nn.Linear(7, WIDTH), nn.Identity()):
        problems = contract_violations(
            model, Seed(0, slot, "x", body), lambda b: model(b).mean(), x
        )
        assert bool(problems) is not isinstance(body, nn.Identity)
