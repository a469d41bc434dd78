"""Finding the slots of a host, and leaving it as it was."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from esper.kasmina.errors import SlotError
from esper.kasmina.slots import MAX_SPAN, SlotMap, find_slots
from support.hosts import HOSTS, Tokens, bits, cnn, differing, mlp

pytestmark = pytest.mark.usefixtures("quiet")


def slots_of(model: nn.Module, x: Tensor) -> SlotMap:
    return find_slots(model, lambda: model(x))


def test_mlp_has_its_outputs_and_spans_in_order_of_the_forward_pass() -> None:
    found = slots_of(mlp(), torch.randn(4, 6)).slots
    assert list(found) == ["0", "1", "4", "0..0", "0..1", "0..4", "1..1", "1..4", "4..4"]
    hidden, span = found["0"], found["0..4"]
    assert (hidden.source, hidden.in_shape, hidden.out_shape) == ("output", (8,), (8,))
    assert (span.source, span.start, span.end) == ("span", "0", "4")
    assert (span.in_shape, span.out_shape, span.in_axis, span.out_axis) == ((6,), (3,), 0, 0)


def test_planes_carry_their_features_on_the_first_axis() -> None:
    found = slots_of(cnn(), torch.randn(4, 1, 6, 6)).slots
    assert (found["1"].out_shape, found["1"].out_axis) == ((4, 6, 6), 0)
    assert (found["0..3"].in_shape, found["0..3"].out_shape) == ((1, 6, 6), (4, 6, 6))
    assert "0..6" not in found, "a span keeps its number of dimensions"
    assert "3..3" in found


def test_tokens_carry_their_features_on_the_last_axis() -> None:
    found = slots_of(Tokens(), torch.randint(11, (4, 5)))
    assert (found.slots["norm"].out_shape, found.slots["norm"].out_axis) == ((5, 8), 1)
    assert (found.slots["norm..mix"].in_axis, found.slots["norm..mix"].out_axis) == (1, 1)
    assert found.left_out == {
        "attention.out_proj": "no slots on NonDynamicallyQuantizableLinear",
    }


def test_a_span_reaches_over_so_many_slot_modules_and_no_further() -> None:
    deep = nn.Sequential(*(nn.Linear(3, 3) for _ in range(6)))
    spans = [s for s in slots_of(deep, torch.randn(2, 3)).slots.values() if s.source == "span"]
    assert max(int(s.end) - int(s.start) for s in spans) == MAX_SPAN - 1


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.LayerNorm])
def test_norms_are_slots(kind: type[nn.Module]) -> None:
    model = nn.Sequential(kind(5))
    assert slots_of(model, torch.randn(4, 5)).slots["0"].out_shape == (5,)


def test_slots_take_dtype_and_device_of_the_activation() -> None:
    model = nn.Sequential(nn.Linear(3, 3)).to(torch.bfloat16)
    slot = slots_of(model, torch.randn(2, 3, dtype=torch.bfloat16)).slots["0"]
    assert slot.dtype is torch.bfloat16
    assert slot.device == torch.device("cpu")


class Odd(nn.Module):
    """Modules in every situation in which none can carry a slot, beside one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.good = nn.Linear(4, 4)
        self.twice = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)
        self.shared = nn.Linear(4, 4)
        self.alias = self.shared
        self.named = nn.Linear(4, 4)
        self.flat = nn.Linear(4, 4)
        self.pair = Pair(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.shared(self.twice(self.twice(self.good(x))))
        h = self.named(input=h) + self.flat(h[0])
        return self.pair(h)[0]


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


def test_every_module_without_a_slot_is_listed_with_its_reason() -> None:
    found = slots_of(Odd(), torch.randn(2, 4))
    assert list(found.slots) == [
        *("good", "named"),
        *("good..good", "good..named", "named..named"),
    ]
    assert found.left_out == {
        "twice": "called 2 times in one forward pass",
        "never": "not called in the forward pass",
        "shared": "shared: the module stands under several names",
        "flat": "activation of shape (4,) has no batch dimension",
        "pair": "no slots on Pair, which may lay out its features in another way than Linear; if "
        "not: esper.register_slot_type(Pair, feature_axis=-1)",
    }


@pytest.mark.parametrize("output", [lambda x: {"x": x}, lambda x: [x], lambda x: (), lambda _: 1])
def test_outputs_without_an_activation_are_left_out(
    output: Callable[[Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    monkeypatch.setattr(model[1], "forward", output)
    (reason,) = slots_of(model, torch.randn(2, 4)).left_out.values()
    assert "must be a tensor, its output one or a plain tuple that starts with one" in reason


def test_half_precision_is_left_out() -> None:
    half = nn.Sequential(nn.Linear(4, 4)).half()
    with pytest.raises(SlotError, match=r"dtype torch\.float16, wanted one of torch\.float32"):
        slots_of(half, torch.randn(2, 4).half())


@pytest.mark.parametrize("norm", [spectral_norm, weight_norm])
def test_normed_weights_make_no_difference(norm: type) -> None:
    model = nn.Sequential(norm(nn.Linear(4, 5)), nn.ReLU())
    found = slots_of(model, torch.randn(2, 4))
    assert list(found.slots) == ["0", "0..0"]
    assert found.left_out == {"1": "no slots on ReLU"}


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.Sequential(nn.ReLU()), "0: no slots on ReLU"),
        (nn.Identity(), "no modules"),
        (nn.Sequential(nn.LazyLinear(3)), "run one batch through the model first"),
    ],
)
def test_a_host_without_slots_is_refused_with_the_reasons(model: nn.Module, why: str) -> None:
    with pytest.raises(SlotError, match=why):
        slots_of(model, torch.randn(2, 4))


class Busy(nn.Module):
    """Draws from every generator and changes every kind of state in each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.calls = 0
        self.register_buffer("late", None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.late = torch.full((1,), random.random() + float(np.random.rand()))
        self.extra = {"seen": [x]}
        if not hasattr(self, "new"):
            self.register_buffer("new", torch.ones(1))
        result: Tensor = self.body(x)
        return result


@pytest.mark.parametrize("training", [True, False])
def test_tracing_leaves_the_host_bit_for_bit_as_it_was(training: bool) -> None:
    model = Busy().train(training)
    model.body[3].eval()
    buffers, x = dict(model.named_buffers()), torch.randn(4, 6)
    before = bits(model)
    slots_of(model, x)
    assert differing(before, bits(model)) == []
    assert all(buffers[name] is buffer for name, buffer in model.named_buffers())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_failing_forward_leaves_the_host_as_it_was_too() -> None:
    model, x = Busy(), torch.randn(4, 7)
    before = bits(model)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        slots_of(model, x)
    assert differing(before, bits(model)) == []
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("name", HOSTS)
def test_a_compiled_host_has_the_slots_of_the_plain_one(name: str) -> None:
    model, x = HOSTS[name]()
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    assert find_slots(model, lambda: compiled(x)) == slots_of(model, x)
