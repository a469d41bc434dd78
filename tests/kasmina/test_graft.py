"""A seed in the forward path: its values, its gradients, and what the host's owner sees."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina.errors import SlotError
from esper.kasmina.graft import GraftedSeed, GraftPoint, SpanInput, attach, detach, replace_module
from esper.kasmina.lattice import install_fossil
from esper.kasmina.signature import Slot
from esper.kasmina.slots import find_slots
from support.hosts import (
    Checkpointed,
    Tokens,
    cnn,
    mlp,
    noise_body,
    sgd_seed,
)
from support.tensors import same_bits

pytestmark = pytest.mark.usefixtures("quiet")


def graft(
    model: nn.Module, slot: Slot, alpha: float, *, key: str = "0", fossil: bool = False
) -> GraftedSeed:
    seed = GraftedSeed(noise_body(slot), slot)
    seed.alpha.fill_(alpha)
    seed.isolated = not fossil
    attach(model, seed, key, slot.start, slot.end)
    return seed


def chain() -> tuple[nn.Module, Tensor, dict[str, Slot]]:
    """Three layers with a kink between them, in float64."""
    model = nn.Sequential(
        nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)
    ).double()
    x = torch.randn(7, 6, dtype=torch.float64)
    return model, x, find_slots(model, lambda: model(x)).slots


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("slot", ["0", "4", "0..0", "0..4", "2..4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_alpha_0_forward_and_gradients_have_the_hosts_bits(
    slot: str, dtype: torch.dtype
) -> None:
    model, x, slots = chain()
    model, x = model.to(dtype), x.to(dtype)
    out, host = model(x), gradients(model, x)
    seed = graft(model, slots[slot], 0.0)
    seed.body.to(dtype)
    with torch.no_grad():
        seed.body.bias.fill_(float("nan"))
    assert same_bits(model(x), out)
    grown = {name.replace(".host", ""): g for name, g in gradients(model, x).items()}
    assert all(same_bits(grown[name], gradient) for name, gradient in host.items())


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_an_output_seed_adds_alpha_times_its_body_and_sends_nothing_back(alpha: float) -> None:
    model, x, slots = chain()
    seed = graft(model, slots["2"], alpha)
    first, second, third = model[0], model[2].host, model[4]
    h = second(first(x).tanh())
    wanted = third((h + alpha * seed.body(h.detach())).tanh())
    torch.testing.assert_close(model(x), wanted, rtol=1e-15, atol=1e-15)
    expected = torch.autograd.grad(wanted.square().sum(), [first.weight, seed.body.weight])
    found = gradients(model, x)
    torch.testing.assert_close(found["0.weight"], expected[0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found["2.seeds.0.body.weight"], expected[1], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("fossil", [False, True])
def test_a_span_seed_reads_the_input_of_the_span(fossil: bool) -> None:
    model, x, slots = chain()
    seed = graft(model, slots["2..4"], 1.0, fossil=fossil)
    first, second, third = model[0], model[2].host, model[4].host
    entry = first(x).tanh()
    wanted = third(second(entry).tanh()) + seed.body(entry if fossil else entry.detach())
    torch.testing.assert_close(model(x), wanted, rtol=1e-15, atol=1e-15)
    (expected,) = torch.autograd.grad(wanted.square().sum(), first.weight)
    torch.testing.assert_close(gradients(model, x)["0.weight"], expected, rtol=1e-13, atol=1e-13)


def test_a_fossil_on_an_output_lets_gradients_through() -> None:
    model, x, slots = chain()
    seed = graft(model, slots["0"], 1.0, fossil=True)
    h = model[0].host(x)
    wanted = model[4](model[2]((h + seed.body(h)).tanh()).tanh())
    (expected,) = torch.autograd.grad(wanted.square().sum(), model[0].host.weight)
    found = gradients(model, x)["0.host.weight"]
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_seeds_stack_in_one_slot_oldest_first() -> None:
    model, x, slots = chain()
    old = graft(model, slots["0"], 1.0, key="7", fossil=True)
    new = graft(model, slots["0"], 0.5, key="2")
    h = model[0].host(x)
    grown = h + old.body(h)
    wanted = model[4](model[2]((grown + 0.5 * new.body(grown)).tanh()).tanh())
    torch.testing.assert_close(model(x), wanted, rtol=1e-14, atol=1e-14)


def test_spans_nest_and_overlap() -> None:
    model, x, slots = chain()
    names = ("0..4", "0..2", "2..4", "2..2")
    seeds = {name: graft(model, slots[name], 1.0, key=name.replace("..", "-")) for name in names}
    a = model[0].host(x).tanh()
    b = model[2].host(a) + seeds["0..2"].body(x) + seeds["2..2"].body(a)
    wanted = model[4].host(b.tanh()) + seeds["0..4"].body(x) + seeds["2..4"].body(a)
    torch.testing.assert_close(model(x), wanted, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_detaching_brings_the_very_modules_back(order: tuple[int, ...]) -> None:
    model, x, slots = chain()
    modules, keys, out = list(model.modules()), list(model.state_dict()), model(x)
    taken = [slots["0"], slots["0..4"], slots["2..4"]]
    for number, slot in enumerate(taken):
        graft(model, slot, 1.0, key=str(number))
    assert list(model.state_dict()) != keys
    for number in order:
        detach(model, str(number), taken[number].start, taken[number].end)
    assert list(map(id, model.modules())) == list(map(id, modules))
    assert list(model.state_dict()) == keys
    assert same_bits(model(x), out)


def test_a_graft_point_has_the_attributes_of_its_host_and_its_own_protocols() -> None:
    class Copied(nn.Linear):
        def __deepcopy__(self, memo: object) -> Copied:
            return Copied(self.in_features, self.out_features)

    point = GraftPoint(Copied(4, 3))
    assert (point.in_features, point.weight) == (4, point.host.weight)
    assert isinstance(copy.deepcopy(point), GraftPoint)
    with pytest.raises(AttributeError, match="'Copied' object has no attribute 'nothing'"):
        _ = point.nothing


def test_a_graft_point_leaves_the_modes_inside_its_host_alone() -> None:
    host = nn.Linear(3, 3)
    host.add_module("quiet", nn.Dropout().eval())
    point = GraftPoint(host)
    assert (point.training, point.seeds.training, host.quiet.training) == (True, True, False)
    assert not GraftPoint(nn.Linear(3, 3).eval()).training


def grown() -> tuple[nn.Module, Tensor]:
    model, x = mlp(), torch.randn(8, 6)
    slots = find_slots(model, lambda: model(x)).slots
    graft(model, slots["1"], 1.0, key="0", fossil=True)
    graft(model, slots["0..4"], 1.0, key="1", fossil=True)
    model(x)
    return model.eval(), x


def test_a_model_with_fossils_can_be_copied_and_pickled() -> None:
    model, x = grown()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same_bits(twin(x), model(x))
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
        recorder = twin[4].span_inputs["1"]
        assert isinstance(recorder, SpanInput)
        assert recorder is twin[0].recorders["1"]


def test_the_state_of_a_model_with_fossils_can_be_saved_and_loaded() -> None:
    model, x = grown()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other, _ = grown()
    other.load_state_dict(torch.load(file))
    assert same_bits(other(x), model(x))


def test_a_span_whose_end_runs_first_is_an_error() -> None:
    with pytest.raises(SlotError, match="before its start"):
        SpanInput().take()


def test_a_path_without_a_module_is_an_error() -> None:
    with pytest.raises(SlotError, match="no module at '9'"):
        replace_module(mlp(), "9", nn.Identity())


def test_a_graft_in_a_stock_encoder_layer_is_seen_in_evaluation_too() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(2, 3, 8)
    slots = find_slots(layer, lambda: layer(x)).slots
    layer.eval()
    with torch.no_grad():
        plain = layer(x)
    graft(layer, slots["linear1"], 1.0)
    wanted = layer(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted)
        assert not torch.allclose(layer(x), plain, atol=1e-3)
        detach(layer, "0", "linear1", "linear1")
        assert same_bits(layer(x), plain)


@pytest.mark.parametrize("fossil", [False, True])
@pytest.mark.parametrize("slot", ["a.0", "a.0..a.2", "b.0"])
def test_a_checkpointed_host_has_the_gradients_of_the_plain_one(slot: str, fossil: bool) -> None:
    model, x = Checkpointed(), torch.randn(5, 4, requires_grad=True)
    graft(model, find_slots(model, lambda: model(x)).slots[slot], 0.5, fossil=fossil)
    saving = gradients(model, x)
    model.saving = False
    plain = gradients(model, x)
    assert saving.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(saving[name], gradient)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_host_sees_a_graft_its_alpha_and_its_end(backend: str) -> None:
    torch._dynamo.reset()
    model, x, slots = chain()
    compiled = torch.compile(model, backend=backend)
    plain = compiled(x).detach()
    seeds = [graft(model, slots["0..4"], 0.0, key="0"), graft(model, slots["2"], 0.0, key="1")]
    torch.testing.assert_close(compiled(x), plain, rtol=0, atol=0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for alpha in (0.25, 0.5, 1.0):
            for seed in seeds:
                seed.alpha.fill_(alpha)
            torch.testing.assert_close(compiled(x), model(x))
            assert not torch.allclose(compiled(x), plain)
    compiled(x).square().sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    for name, gradient in gradients(model, x).items():
        torch.testing.assert_close(found[name], gradient)
    detach(model, "0", "0", "4")
    detach(model, "1", "2", "2")
    torch.testing.assert_close(compiled(x), plain, rtol=0, atol=0)


@pytest.mark.parametrize("slot", ["0", "1", "0..3"])
def test_planes_in_any_memory_format_take_grafts(slot: str) -> None:
    model, x = cnn(), torch.randn(4, 1, 6, 6).contiguous(memory_format=torch.channels_last)
    found = find_slots(model, lambda: model(x)).slots[slot]
    before = model(x)
    body = nn.Conv2d(found.in_shape[0], found.out_shape[0], 1)
    seed = GraftedSeed(body, found)
    attach(model, seed, "0", found.start, found.end)
    assert same_bits(model(x), before)
    seed.alpha.fill_(1.0)
    assert not torch.allclose(model(x), before)


def test_a_seed_built_in_at_birth_is_a_fossil() -> None:
    model, x = Tokens(), torch.randint(11, (4, 5))
    slot = find_slots(model, lambda: model(x)).slots["norm..mix"]
    grown = copy.deepcopy(model)
    graft(grown, slot, 1.0, fossil=True).body.load_state_dict(
        (seed := sgd_seed(slot)).body.state_dict()
    )
    install_fossil(model, seed)
    assert same_bits(model(x), grown(x))
    built, wanted = gradients(model, x), gradients(grown, x)
    assert all(same_bits(built[name], gradient) for name, gradient in wanted.items())
