"""Exports of growth on convolutions over signals, on attention, and in stock transformers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

import esper
from esper.portable.errors import ExportError
from support.alone import run_alone
from support.grown import equal, fitting, grow, outputs, slots_of

pytestmark = pytest.mark.usefixtures("quiet")


def encoder(*, batch_first: bool = True, norm_first: bool = False, layers: int = 2) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.1, batch_first=batch_first, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


class Decoder(nn.Module):
    """Decodes its input with itself as memory, under a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        result: Tensor = self.layer(x, x, tgt_mask=mask, tgt_is_causal=True)
        return result


def signals() -> nn.Module:
    return nn.Sequential(nn.Conv1d(5, 6, 3, padding=1), nn.ReLU(), nn.Conv1d(6, 4, 3, padding=1))


@pytest.mark.parametrize(
    "make",
    [encoder, lambda: encoder(batch_first=False), lambda: encoder(norm_first=True), Decoder],
    ids=["batch first", "sequence first", "norm first", "decoder"],
)
def test_every_slot_within_a_stock_layer_becomes_plain_with_the_same_bits(
    make: Callable[[], nn.Module],
) -> None:
    x = torch.randn(3, 5, 8)
    across = 0
    for slot in slots_of(make(), x).values():
        torch.manual_seed(1)
        model = grow(make(), x, (slot.id, fitting(slot)[0].name))
        if slot.start.split(".")[:2] != slot.end.split(".")[:2] and make is not Decoder:
            across += 1
            with pytest.raises(ExportError, match=r"spans several modules of the model \(Transf"):
                esper.export(model)
            continue
        assert equal(outputs(esper.export(model), x), outputs(model, x)), slot.id
    assert across == (0 if make is Decoder else 4)


def test_masks_go_through_an_exported_layer() -> None:
    model, x = encoder(layers=1), torch.randn(3, 5, 8)
    grow(
        model,
        x,
        ("layers.0.linear1..layers.0.linear2", "widen"),
        ("layers.0.self_attn", "low_rank"),
    )
    plain = esper.export(model)
    assert isinstance(plain.layers[0], fx.GraphModule)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    padding = torch.tensor([[False] * 3 + [True] * 2] + [[False] * 5] * 2)
    model.eval()
    plain.eval()
    for options in (
        {"mask": causal},
        {"mask": causal, "is_causal": True},
        {"src_key_padding_mask": padding},
        {"mask": causal.isinf(), "src_key_padding_mask": padding},
    ):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                assert torch.equal(plain(x, **options), model(x, **options))


@pytest.mark.parametrize(
    ("make", "shape", "growth"),
    [
        (signals, (4, 5, 7), [("0..2", "widen"), ("2", "low_rank")]),
        (encoder, (4, 5, 8), [("layers.0.self_attn", "bottleneck_mlp")]),
        (encoder, (4, 5, 8), [("layers.1.self_attn..layers.1.linear1", "widen")]),
    ],
    ids=["signal", "attention", "span from attention"],
)
def test_it_runs_and_exports_where_esper_does_not_exist(
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    growth: list[tuple[str, str]],
    tmp_path: Path,
) -> None:
    model, x = make(), torch.randn(shape)
    plain = esper.export(grow(model, x, *growth))
    assert equal(outputs(plain, x), outputs(model, x))
    run_alone(plain.eval(), x, tmp_path)


def test_an_exported_attention_keeps_its_answers_and_trains() -> None:
    model, x = encoder(layers=1), torch.randn(3, 5, 8)
    grow(model, x, ("layers.0.self_attn", "low_rank"), ("layers.0.self_attn", "bottleneck_mlp"))
    plain = esper.export(model)
    for twin in (plain, copy.deepcopy(plain), pickle.loads(pickle.dumps(copy.deepcopy(plain)))):
        attention = twin.layers[0].self_attn
        assert (attention.batch_first, attention.num_heads) == (True, 2)
        assert equal(outputs(twin, x), outputs(model, x))
    one, two = (m.layers[0].self_attn.eval() for m in (model, plain))
    padding = torch.zeros(3, 5, dtype=torch.bool)
    for options in ({}, {"need_weights": False}, {"average_attn_weights": False}):
        for h, w in zip(
            one(x, x, x, padding, **options), two(x, x, x, padding, **options), strict=True
        ):
            assert h is w is None or torch.equal(h, w)
    for m in (model, plain):
        torch.manual_seed(3)
        m.train()(x).square().mean().backward()
    gradients = [sorted(float(p.grad.abs().sum()) for p in m.parameters()) for m in (model, plain)]
    assert gradients[0] == gradients[1]


@pytest.mark.parametrize("make", [signals, encoder, lambda: encoder(batch_first=False), Decoder])
def test_a_fresh_model_grows_into_the_saved_one(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    x = torch.randn(3, 5, 8)
    model = make()
    spans = [slot for slot in slots_of(model, x).values() if slot.source == "span"]
    chosen = [(slot.id, fitting(slot)[0].name) for slot in spans[:3]]
    first = next(iter(slots_of(model, x)))
    grow(model, x, (first, "low_rank"), *chosen, (first, "bottleneck_mlp"))
    esper.save(model, tmp_path / "grown")
    loaded = esper.load(make(), tmp_path / "grown")
    assert equal(outputs(loaded, x), outputs(model, x))
    assert esper.check_isolation(loaded, x, lambda b: loaded(b).square().mean()).ok
