"""Slots on module types that a user declares."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.kasmina.activation import activation
from esper.kasmina.errors import SlotError
from esper.kasmina.graft import GraftedSeed, attach, detach
from support.grown import equal, grow, outputs
from support.hosts import mlp, noise_body
from support.tensors import same_bits

pytestmark = pytest.mark.usefixtures("quiet")


class Gate(nn.Module):
    """``[batch, features]`` to the same, with what it let through."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, signal: Tensor, *, loud: bool = False) -> tuple[Tensor, float, bool]:
        return torch.sigmoid(self.inner(signal)) * signal, 0.5, loud


class Host(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = Gate(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, share, loud = self.gate(signal=x, loud=True)
        result: Tensor = self.head(h) * share * loud
        return result


class Plain(Gate):
    """As ``Gate``, without an argument that goes by name alone."""

    def forward(self, signal: Tensor, loud: bool = True) -> tuple[Tensor, float, bool]:  # type: ignore[override]
        return super().forward(signal, loud=loud)


class Flipped(nn.Module):
    """Features on axis 2 of four."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


esper.register_slot_type(Gate, feature_axis=-1)
esper.register_slot_type(Plain, feature_axis=1)
esper.register_slot_type(Flipped, 2)
esper.register_slot_type(nn.LSTM, feature_axis=-1)


def plain_host() -> nn.Module:
    model = Host()
    model.gate = Plain()
    return model


def test_a_declared_type_carries_slots_around_and_inside_it() -> None:
    found = esper.slots(Host(), torch.randn(4, 6))
    assert list(found.slots)[:3] == ["gate.inner", "gate", "head"]
    assert "gate..head" in found.slots
    assert "gate.inner..gate" in found.slots
    assert found.slots["gate"].outputs == 3
    assert str(found).startswith("9 slots\n  gate.inner ")


@pytest.mark.parametrize("order", [("gate", "gate.inner"), ("gate.inner", "gate..head", "gate")])
def test_growth_on_a_module_and_inside_it_comes_and_goes_in_any_order(
    order: tuple[str, ...],
) -> None:
    model, x = Host(), torch.randn(4, 6)
    slots, out = esper.slots(model, x).slots, model(x)
    for key, name in enumerate(order):
        slot = slots[name]
        seed = GraftedSeed(noise_body(slot), slot)
        attach(model, seed, str(key), slot.start, slot.end)
        assert same_bits(model(x), out)
        seed.alpha.fill_(1.0)
        assert not torch.allclose(model(x), out)
        seed.alpha.fill_(0.0)
    assert list(esper.slots(model, x).slots) == list(slots)
    for key, name in enumerate(order):
        detach(model, str(key), slots[name].start, slots[name].end)
    assert [type(m) for m in model.modules()] == [type(m) for m in Host().modules()]


@pytest.mark.parametrize("order", [("gate", "gate.inner"), ("gate.inner", "gate..head", "gate")])
def test_it_is_saved_loaded_and_exported(order: tuple[str, ...], tmp_path: Path) -> None:
    model, x = plain_host(), torch.randn(4, 6)
    grow(model, x, *((name, "widen" if ".." in name else "low_rank") for name in order))
    esper.save(model, tmp_path / "grown")
    loaded = esper.load(plain_host(), tmp_path / "grown")
    assert equal(outputs(loaded, x), outputs(model, x))
    assert equal(outputs(esper.export(loaded), x), outputs(model, x))


class Takes(Gate):
    """As ``Gate``, with whatever else it is given by name."""

    def forward(self, signal: Tensor, *, loud: bool = False, **rest: Tensor) -> Tensor:  # type: ignore[override]
        return torch.sigmoid(self.inner(signal)) * signal + sum(rest.values()) * loud


esper.register_slot_type(Takes, -1)


@pytest.mark.parametrize("gate", [Gate, Takes])
def test_a_type_with_arguments_that_go_by_name_alone_is_exported(gate: type[Gate]) -> None:
    model, x = Host(), torch.randn(4, 6)
    model.gate = gate()
    options: dict[str, object] = {"loud": True}
    if gate is Takes:
        options |= {"one": torch.randn(6), "two": torch.randn(6)}
    model.forward = lambda x: model.head(activation(model.gate(signal=x, **options)))  # type: ignore[method-assign]
    grow(model, x, ("gate", "low_rank"), ("gate..gate", "widen"))
    plain = esper.export(model.gate)
    assert set(gate().state_dict()) < set(plain.state_dict()), "parameters keep their names"
    assert b"esper" not in pickle.dumps(plain)
    for twin in (plain, copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        for given in (options, {}):
            for call in (lambda m, g=given: m(x, **g), lambda m, g=given: m(signal=x, **g)):
                assert torch.equal(activation(call(twin)), activation(call(model.gate)))


def test_the_feature_axis_is_the_declared_one() -> None:
    slot = esper.slots(nn.Sequential(Flipped()), torch.randn(2, 3, 5, 4)).slots["0"]
    assert (slot.out_shape, slot.out_axis) == ((3, 5, 4), 1)
    with pytest.raises(SlotError, match=r"shape \(2, 3\) has no features on axis 2"):
        esper.slots(nn.Sequential(Flipped()), torch.randn(2, 3))


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_recurrent_layer_keeps_its_state(batch_first: bool) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 8, batch_first=batch_first), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h, (last, _) = self.lstm(x)
            return self.head(h) + self.head(last[0]).unsqueeze(1 if batch_first else 0)

    model, x = Recurrent(), torch.randn(3, 5, 4) if batch_first else torch.randn(5, 3, 4)
    assert esper.slots(model, x).left_out == {"head": "called 2 times in one forward pass"}
    grow(model, x, ("lstm", "low_rank"), ("lstm..lstm", "widen"))
    assert equal(outputs(esper.export(model), x), outputs(model, x))
    loaded = esper.load(Recurrent(), model.state_dict())
    assert equal(outputs(loaded, x), outputs(model, x))


def test_slots_takes_a_batch_or_a_function_and_a_compiled_model() -> None:
    model, x = mlp(), torch.randn(8, 6)
    wanted = esper.slots(model, x)
    compiled = torch.compile(model, backend="eager")
    for host, batch in ((model, (x, 1)), (model, lambda: model(x)), (compiled, x)):
        assert esper.slots(host, batch) == wanted
    assert "no slot on 2: no slots on ReLU" in str(wanted)


@pytest.mark.parametrize(
    ("kind", "axis", "error", "why"),
    [
        (nn.Linear(2, 2), -1, TypeError, r"wanted a subclass of torch.nn.Module \(the type"),
        (int, -1, TypeError, "wanted a subclass of torch.nn.Module"),
        (Host, "last", TypeError, "got feature_axis='last', wanted an integer"),
        (Host, True, TypeError, "got feature_axis=True, wanted an integer"),
        (Host, 0, ValueError, "got feature_axis=0, which is the batch"),
        (nn.Linear, 1, ValueError, "Linear has its features on axis -1 already, got 1"),
        (Gate, 1, ValueError, "Gate has its features on axis -1 already, got 1; declare a sub"),
    ],
)
def test_what_is_no_declaration_is_refused(
    kind: type[nn.Module], axis: int, error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        esper.register_slot_type(kind, axis)
    esper.register_slot_type(Gate, -1)
