"""Slots on embeddings, recurrent layers, norms and blocks, and in hosts that are frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import esper
from esper.kasmina.check import contract_violations
from esper.kasmina.errors import SlotError
from esper.kasmina.fold import FoldError, fold_in
from esper.kasmina.graft import GraftedSeed, attach
from esper.kasmina.lattice import install_fossil
from esper.kasmina.seed import Seed
from support.grown import equal, grow, outputs, slots_of
from support.growth_runs import FAST, Loop, OneSeed, bits, same, stages, with_
from support.hosts import noise_body, sgd_seed
from support.tensors import same_bits

pytestmark = pytest.mark.usefixtures("quiet")

TIME, BATCH, WIDTH = 5, 3, 8


class Recurrent(nn.Module):
    """Words through a recurrent layer; the result depends on its state as well."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.layer = kind(6, WIDTH, **options)  # type: ignore[arg-type]
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h, state = self.layer(self.embed(x))
        self.state = state[0] if isinstance(state, tuple) else state
        return h.sum(-1)  # type: ignore[no-any-return]


def mean_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda batch: model(batch).mean()


KINDS: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "rnn": (lambda **o: Recurrent(nn.RNN, **o), 8),
    "gru": (lambda **o: Recurrent(nn.GRU, bidirectional=True, num_layers=2, **o), 16),
    "lstm": (lambda **o: Recurrent(nn.LSTM, proj_size=3, **o), 3),
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_on_a_recurrent_layer_leaves_its_state_alone(
    kind: str, batch_first: bool, tmp_path: Path
) -> None:
    make, width = KINDS[kind]
    x = torch.randint(11, (BATCH, TIME) if batch_first else (TIME, BATCH))
    slots = slots_of(make(batch_first=batch_first), x)
    assert list(slots) == ["embed", "layer", "layer..layer"]
    for name in slots:
        model = make(batch_first=batch_first)
        slot = slots[name]
        assert slot.out_shape == (TIME, 6 if name == "embed" else width)
        assert (slot.batch_axis, slot.outputs) == (
            int(not batch_first),
            2 if "layer" in name else 0,
        )
        model.state = None
        assert contract_violations(model, sgd_seed(slot), mean_of(model), x) == []
        before, state = model(x), model.state
        seed = GraftedSeed(noise_body(slot), slot)
        attach(model, seed, "0", slot.start, slot.end)
        assert same_bits(model(x), before)
        seed.alpha.fill_(1.0)
        assert not torch.allclose(model(x), before)
        assert name == "embed" or same_bits(model.state, state)
        model = make(batch_first=batch_first)
        grow(model, x, (name, "widen" if ".." in name else "low_rank"))
        wanted = outputs(model, x)
        model.state = None
        assert equal(outputs(esper.export(model), x), wanted)
        esper.save(model, tmp_path / name)
        assert equal(outputs(esper.load(make(batch_first=batch_first), tmp_path / name), x), wanted)


def test_a_packed_sequence_is_left_out_with_what_to_do() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, [5, 3], batch_first=True)
            out: PackedSequence = self.layer(packed)[0]
            return self.head(out.data)  # type: ignore[no-any-return]

    found = esper.slots(Packed(), torch.randn(2, 5, 4))
    assert found.left_out["layer"].startswith(
        "it is given a packed sequence, and seeds take padded"
    )
    assert "head" in found.slots


class Two(NamedTuple):
    h: Tensor
    rest: Tensor


class Words(nn.Module):
    """Words and their places ``[batch, time]``, through blocks, to words by the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, WIDTH), nn.Embedding(9, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block(), Narrowing(), Named(), Mute()])
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x) + self.places(torch.arange(x.shape[1])[None])
        h = self.blocks[1](h=self.blocks[0](h)[0])[0]
        h = h + self.blocks[2](h).sum() + self.blocks[3](h).rest + self.blocks[4](h)
        return self.head(self.norm(h))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A residual layer that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.RMSNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, h: Tensor) -> tuple[Tensor, int]:
        return h + self.down(torch.relu(self.up(self.norm(h)))), 7


class Narrowing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, 2)

    def forward(self, h: Tensor) -> Tensor:
        return self.inner(h)  # type: ignore[no-any-return]


class Named(Narrowing):
    def forward(self, h: Tensor) -> Two:  # type: ignore[override]
        return Two(h, self.inner(h).sum())


class Mute(Narrowing):
    """Nothing in it has an activation of the shape that it returns."""

    def forward(self, h: Tensor) -> Tensor:
        return h * self.inner(h).mean()


def test_blocks_carry_slots_where_the_modules_inside_tell_the_features() -> None:
    x = torch.randint(11, (BATCH, TIME))
    found = esper.slots(Words(), x)
    blocks = [name for name in found.slots if name.split(".")[-1].isdigit()]
    assert blocks == ["blocks.0", "blocks.1", *(f"blocks.{s}" for s in SPANS)]
    slot = found.slots["blocks.0..blocks.1"]
    assert (slot.in_shape, slot.out_axis, slot.outputs) == ((TIME, WIDTH), 1, 2)
    assert found.left_out == {
        "places": "activation of shape (1, 5, 8), and the batch is of 3: it is looked up once for "
        "all examples",
        "blocks.2": "a block given (3, 5, 8) that returns (3, 5, 2): blocks carry slots where the "
        "shape stays",
        "blocks.3": "its first input must be a tensor, its output one or a plain tuple that starts "
        "with one",
        "blocks.4": "a block of shape (3, 5, 8), and modules inside it have the features of such "
        "an activation in no place: declare them with esper.register_slot_type(Mute, "
        "feature_axis=...)",
    }
    text = str(found)
    assert "  blocks.N.norm..blocks.N.up  " in text
    assert text.count("N = 0, 1\n") == 11


SPANS = ("0..blocks.0", "0..blocks.1", "1..blocks.1")


@pytest.mark.parametrize("name", ["words", "blocks.0", "blocks.1..blocks.1", "blocks.0..blocks.1"])
def test_growth_on_embeddings_and_blocks_is_saved_loaded_and_exported(
    name: str, tmp_path: Path
) -> None:
    model, x = Words(), torch.randint(11, (BATCH, TIME))
    assert (
        contract_violations(model, sgd_seed(slots_of(model, x)[name]), lambda b: model(b).mean(), x)
        == []
    )
    grow(model, x, (name, "widen" if ".." in name else "low_rank"), ("blocks.0.up", "low_rank"))
    wanted = outputs(model, x)
    plain = esper.export(model)
    assert equal(outputs(plain, x), wanted)
    assert plain.head.weight is plain.words.weight
    esper.save(model, tmp_path / "grown")
    assert equal(outputs(esper.load(Words(), tmp_path / "grown"), x), wanted)


def test_tied_weights_are_not_folded_into() -> None:
    model, x = Words(), torch.randint(11, (BATCH, TIME))
    for name, why in (("head", "its weight is shared with another"), ("words", "no single module")):
        slot = slots_of(model, x)[name]
        seed = Seed(0, slot, "test", noise_body(slot))
        install_fossil(model, seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(FoldError, match=why):
            fold_in(model, optimizer, seed, lambda: model(x))


def test_an_embedding_that_changes_its_weights_in_a_pass_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(11, 4, max_norm=1.0), nn.Linear(4, 2))
    with pytest.raises(SlotError, match="0 has max_norm, so it changes its weights in every"):
        esper.slots(model, torch.randint(11, (3, 5)))


def test_arguments_by_name_make_a_batch() -> None:
    model, x = Words(), torch.randint(11, (BATCH, TIME))
    assert esper.slots(model, {"x": x}) == esper.slots(model, x)


class Frozen(Loop):
    """A loop over a host of which a part, or all, is not trained."""

    def __init__(self, *, wholly: bool) -> None:
        super().__init__(dropout=0.2)
        self.model.requires_grad_(False)
        self.model.get_submodule("head").requires_grad_(not wholly)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained or self.model.parameters(), lr=0.01)

    def run(self, steps: int, **_: object) -> None:
        for _ in range(steps):
            batch = self.batches[self.steps % len(self.batches)]
            self.steps += 1
            loss = self.loss_fn(batch)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.growth is not None:
                self.growth.step(batch, loss.detach())


@pytest.mark.parametrize("wholly", [False, True])
@pytest.mark.parametrize("slot", ["layer1", "layer1..head"])
def test_a_frozen_host_grows_and_what_is_frozen_stays(slot: str, wholly: bool) -> None:
    loop = Frozen(wholly=wholly)
    frozen = {n: copy.deepcopy(p) for n, p in loop.model.named_parameters() if not p.requires_grad}
    growth = loop.grow(FAST, OneSeed(slot, "widen" if ".." in slot else "bottleneck_mlp"))
    loop.run(90)
    growth.close()
    assert stages(growth.records())[:5] == [
        *("germinated", "training", "grafting", "stabilizing", "evaluating")
    ]
    now = {n.replace(".host", ""): p for n, p in loop.model.named_parameters()}
    assert all(torch.equal(now[n], p) and not now[n].requires_grad for n, p in frozen.items())


@pytest.mark.parametrize("wholly", [False, True])
def test_a_frozen_host_is_the_same_to_the_bit_with_seeds_in_training(wholly: bool) -> None:
    plain = Frozen(wholly=wholly)
    plain.run(60)
    wanted = [value.clone() for value in bits(plain)]
    loop = Frozen(wholly=wholly)
    growth = loop.grow(with_(shadow_confidence=0.99999), OneSeed("layer1", "low_rank"))
    loop.run(60)
    assert stages(growth.records()) == ["germinated", "training"]
    assert same(bits(loop), wanted)
    growth.close()
