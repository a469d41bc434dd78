"""``esper.export``: a grown model as a plain module that owes nothing to Esper."""

from __future__ import annotations

import copy
import io
import pickle
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

import esper
from esper.kasmina.graft import GraftPoint
from esper.portable.errors import ExportError
from esper_events.stages import Stage
from support.alone import run_alone
from support.grown import equal, fitting, grow, outputs, slots_of
from support.growth_runs import FAST, Loop, OneSeed
from support.growth_runs import grow as run_growth
from support.hosts import HOSTS, bits, differing, mlp

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.mark.parametrize("name", HOSTS)
def test_every_blueprint_in_every_slot_becomes_plain_with_the_same_bits(name: str) -> None:
    tried = set()
    for slot in slots_of(*HOSTS[name]()).values():
        for blueprint in fitting(slot):
            model, x = HOSTS[name]()
            names = list(model.state_dict())
            grow(model, x, (slot.id, blueprint.name))
            before = bits(model)
            plain = esper.export(model)
            assert differing(before, bits(model)) == []
            assert equal(outputs(model, x), outputs(plain, x)), (slot.id, blueprint.name)
            assert b"esper" not in pickle.dumps(plain)
            if slot.end not in ("1", "attention"):  # BatchNorm and attention stay modules
                assert set(names) <= set(plain.state_dict())
            tried.add(blueprint.name)
    assert {"low_rank", "bottleneck_mlp", "widen", "gated_widen"} <= tried


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_several_seeds_nested_and_across_each_other(name: str) -> None:
    model, x = HOSTS[name]()
    ends = list(slots_of(model, x))
    outputs_, spans = ends[:3], [end for end in ends if ".." in end]
    growth = [(outputs_[0], "low_rank"), (outputs_[0], "bottleneck_mlp"), (outputs_[1], "low_rank")]
    growth += [(spans[1], "widen"), (spans[2], "gated_widen"), (spans[-1], "widen")]
    grow(model, x, *growth)
    plain = esper.export(model)
    assert equal(outputs(model, x), outputs(plain, x))
    grow(model, x, (outputs_[0], "low_rank"), (spans[1], "widen"))
    twice = esper.export(model)
    assert equal(outputs(model, x), outputs(twice, x))
    assert not equal(outputs(twice, x), outputs(plain, x))


@pytest.mark.parametrize(
    ("name", "growth"),
    [
        ("mlp", ("0", "bottleneck_mlp")),
        ("mlp", ("0..4", "conv1d_stack")),
        ("cnn", ("3", "separable_conv")),
        ("tokens", ("norm..mix", "gated_widen")),
    ],
)
def test_it_runs_and_exports_where_esper_does_not_exist(
    name: str, growth: tuple[str, str], tmp_path: Path
) -> None:
    model, x = HOSTS[name]()
    if name == "tokens":  # a class of these tests' own would not exist there
        model, x = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8)), torch.randn(8, 5, 6)
        growth = ("0..1", growth[1])
    plain = esper.export(grow(model, x, growth)).eval()
    run_alone(plain, x, tmp_path)


def test_a_whole_run_ends_in_a_plain_module(tmp_path: Path) -> None:
    growth, loop = run_growth(FAST, OneSeed("layer1..head", "widen"), 80)
    assert len(growth.fossils) == 1
    plain = esper.export(loop.model)
    x = loop.batches[0][0]
    assert equal(outputs(loop.model, x), outputs(plain, x))
    run_alone(plain.eval(), x, tmp_path)


def test_the_plain_module_trains_copies_and_keeps_its_gradients() -> None:
    model, x = HOSTS["mlp"]()
    grow(model, x, ("0..4", "widen"), ("0", "low_rank"))
    plain = esper.export(model)
    shadows = {id(p) for p in model.parameters()} & {id(p) for p in plain.parameters()}
    assert not shadows
    for module in (model, plain):
        torch.manual_seed(3)
        module.train()(x).square().mean().backward()
    gradients = [sorted(float(p.grad.sum()) for p in m.parameters()) for m in (model, plain)]
    assert gradients[0] == gradients[1]
    twin = copy.deepcopy(plain)
    assert equal(outputs(twin, x), outputs(plain, x))
    again = pickle.loads(pickle.dumps(plain))
    assert equal(outputs(again, x), outputs(plain, x))
    kept = io.BytesIO()
    torch.save(plain.state_dict(), kept)
    kept.seek(0)
    twin.load_state_dict(torch.load(kept, weights_only=True))


def test_a_model_that_has_not_grown_is_copied() -> None:
    model, x = HOSTS["tokens"]()
    plain = esper.export(model)
    assert plain is not model
    assert type(plain) is type(model)
    assert equal(outputs(model, x), outputs(plain, x))


def test_only_what_has_grown_becomes_a_graph() -> None:
    model, x = HOSTS["tokens"]()
    plain = esper.export(grow(model, x, ("mix", "low_rank")))
    assert type(plain) is type(model)
    assert [n for n, m in plain.named_modules() if isinstance(m, fx.GraphModule)] == ["mix"]
    assert plain.mix.in_features == model.mix.in_features == 8
    assert torch.equal(plain.mix.weight, model.mix.weight)


def test_a_seed_on_trial_is_refused_and_may_leave_later() -> None:
    loop = Loop()
    growth = loop.grow(FAST, OneSeed("layer1..head", "widen", Stage.EVALUATING))
    while not any(isinstance(m, GraftPoint) for m in loop.model.modules()):
        loop.run(1)
    with pytest.raises(ExportError, match=r"seed on trial \(alpha .*after growth.close"):
        esper.export(loop.model)
    growth.close()
    assert type(esper.export(loop.model)) is type(loop.model)


class Block(nn.Module):
    """``[batch, 6]`` to ``[batch, 3]``; ``how`` says what makes its forward hard to trace."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how, self.calls = nn.Linear(6, 8), nn.Linear(8, 3), how, 0
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = torch.relu(self.a(x))
        if self.how == "branch" and h.sum() > 0:
            h = h * 2
        if self.how == "mode":
            h = nn.functional.dropout(h, 0.5, self.training)
        if self.how == "random" and random.random() > 2:
            h = h * 2
        if self.how == "counter":
            self.calls += 1
        if self.how == "buffer":
            self.scale.mul_(1.5)
        if mask is not None:
            h = h * mask
        return self.b(h + torch.arange(8) * self.scale)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("branch", r"torch.fx cannot trace it \(symbolically traced variables"),
        ("mode", r"one thing in training and another in evaluation"),
        ("random", r"draws random numbers by itself"),
        ("counter", r"changes its own buffers or counters"),
    ],
)
def test_a_span_in_what_cannot_be_traced_is_refused_with_the_reason(how: str, reason: str) -> None:
    model, x = nn.Sequential(Block(how), nn.Linear(3, 3)), torch.randn(4, 6)
    grow(model, x, ("0.a..0.b", "widen"))
    before = bits(model)
    wanted = rf"spans several modules of 0 \(Block\).*{reason}.*esper.save"
    with pytest.raises(ExportError, match=wanted):
        esper.export(model)
    assert differing(before, bits(model)) == []
    alone = nn.Sequential(Block(how), nn.Linear(3, 3))
    assert isinstance(esper.export(grow(alone, x, ("0.a", "low_rank"))), nn.Sequential)


def test_the_smallest_module_around_a_span_is_rewritten_and_optional_arguments_are_fixed() -> None:
    inner = nn.ModuleDict({"block": Block("")})
    model = nn.Sequential(nn.Linear(6, 6), inner["block"], nn.Linear(3, 3))
    x = torch.randn(4, 6)
    grow(model, x, ("1.a..1.b", "widen"))
    plain = esper.export(model)
    assert equal(outputs(model, x), outputs(plain, x))
    assert [n for n, m in plain.named_modules() if isinstance(m, fx.GraphModule)] == ["1"]
    assert set(plain.state_dict()) > {"1.a.weight", "1.b.bias", "1.scale", "0.weight"}
    with pytest.raises(AssertionError):
        plain[1](x, torch.ones(8))


def test_buffers_that_a_traced_forward_changes_go_on_changing() -> None:
    model, x = nn.Sequential(Block("buffer"), nn.Linear(3, 3)), torch.randn(4, 6)
    plain = esper.export(grow(model, x, ("0.a..0.b", "widen")))
    for _ in range(3):
        assert equal(outputs(model, x), outputs(plain, x))
    assert torch.equal(plain[0].scale, model[0].scale)
    assert plain[0].scale > 2


def test_hooks_and_modes_of_the_user_go_along() -> None:
    model, x = HOSTS["mlp"]()
    grow(model, x, ("0", "low_rank"))
    model[1].eval()
    plain = esper.export(model)
    assert [m.training for m in plain] == [m.training for m in model]
    model[0].register_forward_hook(lambda m, a, out: out * 2)
    doubled = esper.export(model)
    assert equal(outputs(doubled, x), outputs(model, x))
    assert not equal(outputs(doubled, x), outputs(plain, x))


def test_stock_encoder_layers_do_not_bypass_what_has_grown() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    x = torch.randn(3, 5, 8)
    grow(model, x, ("layers.0.linear1", "bottleneck_mlp"), ("layers.1.linear2", "low_rank"))
    plain = esper.export(model).eval()
    model.eval()
    with torch.no_grad():
        assert torch.equal(plain(x), model(x))


def test_a_compiled_model_gives_its_plain_original() -> None:
    model, x = HOSTS["mlp"]()
    grow(model, x, ("0", "low_rank"))
    plain = esper.export(torch.compile(model, backend="eager"))
    assert isinstance(plain, nn.Sequential)
    assert equal(outputs(model, x), outputs(plain, x))


def test_low_precision_hosts_compute_the_same_bits() -> None:
    model, x = mlp().to(torch.bfloat16), torch.randn(8, 6, dtype=torch.bfloat16)
    grow(model, x, ("0..4", "widen"), ("4", "low_rank"))
    plain = esper.export(model)
    assert equal(outputs(model, x), outputs(plain, x))


def test_what_cannot_be_copied_is_refused() -> None:
    model = mlp()
    model.stream = (i for i in range(3))
    with pytest.raises(ExportError, match=r"cannot be copied.*generator"):
        esper.export(model)
