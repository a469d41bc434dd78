"""Folding: exact composition with a module's own weights, or a reason and a host left as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from esper.blueprints.ir import Activation, Add, Blueprint, Linear, LowRank, Scale, Size
from esper.blueprints.library import LIBRARY
from esper.kasmina._lattice import AlphaSchedule
from esper.kasmina.digest import model_digest
from esper.kasmina.fold import FoldError
from esper.kasmina.graft import GraftPoint
from esper.kasmina.lattice import Lattice
from esper.kasmina.seed import Seed
from esper.tolaria.trials import new_seed
from esper_events.stages import Stage

OUT = Size("out")
LOW_RANK = LIBRARY["low_rank"]
AFFINE = Blueprint(
    "affine",
    "output",
    (
        Linear(0, OUT),
        LowRank(0, rank=OUT, size=OUT),
        Add(1, 2),
        Scale(3),
        Linear(4, OUT, init="zero"),
    ),
)
"""Every operation that is affine at each position, with an offset."""
SPAN = Blueprint("span_affine", "span", (Linear(0, OUT, init="zero"),))


class Attending(nn.Module):
    """Self-attention over ``[batch, time, 8]``, or ``[time, batch, 8]``."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.attention(x, x, x, need_weights=False)
        logits: Tensor = self.head(h)
        return logits


def linear(bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8, bias=bias), nn.Tanh(), nn.Linear(8, 3))


def convolution(groups: int = 1) -> nn.Module:
    conv = nn.Conv2d(4, 8, 3, padding=1, stride=2, groups=groups, padding_mode="circular")
    return nn.Sequential(conv, nn.ReLU(), nn.Conv2d(8, 2, 1))


class Fossil:
    """A host with one trained fossil, made through the stages of a lattice."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        slot: str,
        *blueprints: Blueprint,
        optimizer: Callable[[Any], torch.optim.Optimizer] = torch.optim.SGD,
    ) -> None:
        self.model, self.x = model, x
        self.optimizer = optimizer(model.parameters())
        self.lattice = Lattice(model, self.optimizer, lambda: model(x))
        for number, blueprint in enumerate(blueprints):
            self.seed = self.fossilize(number, slot, blueprint)

    def fossilize(self, number: int, slot: str, blueprint: Blueprint) -> Seed:
        lattice = self.lattice
        seed = new_seed(number, lattice.map.slots[slot], blueprint, 0)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in seed.parameters:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        lattice.germinate(seed)
        lattice.advance(seed, Stage.TRAINING)
        lattice.start_graft(seed, AlphaSchedule(1))
        lattice.tick()
        lattice.advance(seed, Stage.STABILIZING)
        lattice.advance(seed, Stage.EVALUATING)
        lattice.fossilize(seed)
        return seed

    def fold(self) -> Any:
        return self.lattice.fold(self.seed, lambda: self.model(self.x))


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(9))


PLACES: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "linear": (linear, drawn(5, 6), "0"),
    "no bias": (lambda: linear(bias=False), drawn(5, 6), "0"),
    "tokens": (linear, drawn(5, 7, 6), "0"),
    "convolution": (convolution, drawn(5, 4, 6, 6), "0"),
    "signal": (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU()), drawn(5, 3, 9), "0"),
    "attention": (lambda: Attending(True), drawn(5, 7, 8), "attention"),
    "sequence-first attention": (lambda: Attending(False), drawn(7, 5, 8), "attention"),
}


@pytest.mark.parametrize("blueprint", [LOW_RANK, AFFINE], ids=lambda b: b.name)
@pytest.mark.parametrize("place", PLACES)
def test_a_folded_host_computes_what_host_and_seed_did(place: str, blueprint: Blueprint) -> None:
    make, x, slot = PLACES[place]
    torch.manual_seed(1)
    fossil = Fossil(make(), x, slot, blueprint)
    if place == "no bias" and blueprint is AFFINE:
        with pytest.raises(FoldError, match="no bias"):
            fossil.fold()
        return
    reference = copy.deepcopy(fossil.model).double()(x.double())
    before = model_digest(fossil.model.get_submodule(slot).host)
    folding = fossil.fold()
    module = fossil.model.get_submodule(slot)
    assert not isinstance(module, GraftPoint)
    assert not any(isinstance(m, GraftPoint) for m in fossil.model.modules())
    assert (folding.module, folding.before) == (slot, before)
    assert folding.after == model_digest(module) != before
    assert 0.0 <= folding.difference < 3e-6
    assert folding.largest > 0.1
    torch.testing.assert_close(fossil.model(x).double(), reference, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_span_over_one_linear_folds_too(dtype: torch.dtype) -> None:
    x = drawn(5, 6).to(dtype)
    fossil = Fossil(linear().to(dtype), x, "0..0", SPAN)
    reference = copy.deepcopy(fossil.model).double()(x.double())
    assert fossil.fold().difference < (3e-6 if dtype == torch.float32 else 1e-14)
    torch.testing.assert_close(fossil.model(x).double(), reference, rtol=1e-5, atol=3e-6)


def test_gradients_of_the_folded_host_reach_all_its_weights() -> None:
    fossil = Fossil(linear(), drawn(5, 6), "0", LOW_RANK)
    fossil.fold()
    fossil.model(fossil.x).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in fossil.model.parameters())
    assert len(list(fossil.model.parameters())) == 4


def hooked(module: nn.Module) -> None:
    module.register_forward_hook(lambda *_: None)


def in_attention(change: Callable[[nn.Module], object]) -> Callable[[], Fossil]:
    def make() -> Fossil:
        model = Attending(True)
        change(model.attention)
        return Fossil(model, drawn(5, 7, 8), "attention", LOW_RANK)

    return make


def on_linear(
    change: Callable[[nn.Module], object],
    blueprint: Blueprint = LOW_RANK,
    slot: str = "0",
) -> Callable[[], Fossil]:
    def make() -> Fossil:
        model = linear()
        change(model)
        return Fossil(model, drawn(5, 6), slot, blueprint)

    return make


def later(change: Callable[[Fossil], object]) -> Callable[[], Fossil]:
    def make() -> Fossil:
        fossil = Fossil(linear(), drawn(5, 6), "0", LOW_RANK)
        change(fossil)
        return fossil

    return make


class Tied(nn.Module):
    """A table of embeddings that is also the last layer's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 8)
        self.head = nn.Linear(8, 8)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.table(x))
        return logits


class Held(nn.Sequential):
    """Keeps a view of its first layer's weights as a buffer."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.Tanh())
        self.register_buffer("view", self[0].weight.detach()[:2])


def spectral(model: nn.Module) -> None:
    parametrizations.spectral_norm(model[0])


def norms() -> Fossil:
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8))
    return Fossil(model, drawn(5, 6), "1", LOW_RANK)


def replaced(fossil: Fossil) -> None:
    host = fossil.model[0].host
    host.forward = nn.Linear.forward.__get__(host)


REFUSED: dict[str, tuple[Callable[[], Fossil], str]] = {
    "hook": (on_linear(lambda m: hooked(m[0])), "a hook of the user's is on its module"),
    "hook on the graft": (later(lambda f: hooked(f.model[0])), "hook of the user's is on its mod"),
    "hook on attention": (in_attention(hooked), "a hook of the user's is on its module"),
    "hook on weight": (
        on_linear(lambda m: m[0].weight.register_hook(lambda g: g)),
        "hook of the user's is on its weight",
    ),
    "replaced forward": (later(replaced), "forward method of its module has been replaced"),
    "tied": (lambda: Fossil(Tied(), torch.arange(8), "head", LOW_RANK), "weight is shared"),
    "viewed": (lambda: Fossil(Held(), drawn(5, 6), "0", LOW_RANK), "weight is shared"),
    "spectral norm": (on_linear(spectral), "ParametrizedLinear and the seed"),
    "layer norm": (norms, "LayerNorm and the seed"),
    "groups": (
        lambda: Fossil(convolution(2), drawn(5, 4, 6, 6), "0", LOW_RANK),
        "groups of channels apart",
    ),
    "frozen": (later(lambda f: f.model[0].weight.requires_grad_(False)), "weight is frozen"),
    "untrained": (later(lambda f: f.optimizer.param_groups[0]["params"].clear()), "is frozen"),
    "two modules": (on_linear(lambda _: None, SPAN, "0..2"), "spans several modules"),
    "convolution span": (
        lambda: Fossil(nn.Sequential(nn.Conv1d(4, 4, 1)), drawn(5, 4, 9), "0..0", SPAN),
        "Conv1d and the seed",
    ),
    "bfloat16": (
        lambda: Fossil(linear().bfloat16(), drawn(5, 6).bfloat16(), "0", LOW_RANK),
        "rounding would lose",
    ),
    "older seed": (
        lambda: Fossil(linear(), drawn(5, 6), "0", LIBRARY["bottleneck_mlp"], LOW_RANK),
        "an older seed stands between",
    ),
    "not finite": (
        later(lambda f: f.seed.parameters[0].data.fill_(float("inf"))),
        "weights are not finite",
    ),
    "not called": (
        later(lambda f: setattr(f, "fold", lambda: f.lattice.fold(f.seed, lambda: None))),
        "not called on a held-out batch",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_exact_composition_stays_as_it_is_to_the_bit(case: str) -> None:
    make, reason = REFUSED[case]
    fossil = make()
    digest, members = model_digest(fossil.model), list(fossil.optimizer.param_groups[0]["params"])
    modes = [module.training for module in fossil.model.modules()]
    random_state = torch.get_rng_state()
    output = fossil.model.eval()(fossil.x)
    for module, mode in zip(fossil.model.modules(), modes, strict=True):
        module.training = mode
    with pytest.raises(FoldError, match=reason):
        fossil.fold()
    assert model_digest(fossil.model) == digest
    assert fossil.optimizer.param_groups[0]["params"] == members
    assert [module.training for module in fossil.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    again = fossil.model.eval()(fossil.x)
    torch.testing.assert_close(again, output, rtol=0.0, atol=0.0, equal_nan=True)
    assert fossil.seed.parameters


def test_a_fold_that_moves_the_output_too_far_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fossil = Fossil(linear(), drawn(5, 6), "0", LOW_RANK)
    digest, output = model_digest(fossil.model), fossil.model(fossil.x)
    monkeypatch.setattr("esper.kasmina.fold.TOLERANCE", 0.0)
    with pytest.raises(FoldError, match="its output, up to .*, would move by"):
        fossil.fold()
    assert model_digest(fossil.model) == digest
    assert torch.equal(fossil.model(fossil.x), output)


def test_a_seed_that_does_not_stand_in_the_host_is_not_folded() -> None:
    fossil = Fossil(linear(), drawn(5, 6), "0", LOW_RANK)
    fossil.fold()
    with pytest.raises(FoldError, match="does not stand in the forward path"):
        fossil.fold()


def test_a_second_affine_seed_folds_onto_the_first() -> None:
    fossil = Fossil(linear(), drawn(5, 6), "0", LOW_RANK)
    fossil.fold()
    fossil.seed = fossil.fossilize(1, "0", AFFINE)
    wanted = copy.deepcopy(fossil.model).double()(fossil.x.double())
    fossil.fold()
    torch.testing.assert_close(fossil.model(fossil.x).double(), wanted, rtol=1e-5, atol=3e-6)


def test_what_is_affine_is_read_from_the_recipe() -> None:
    assert {name for name, blueprint in LIBRARY.items() if blueprint.affine} == {"low_rank"}
    assert AFFINE.affine
    bent = Blueprint("bent", "output", (Activation(0, "relu"), Linear(1, OUT, init="zero")))
    assert not bent.affine


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: OneCycleLR(o, max_lr=0.02, total_steps=40),
        lambda o: LambdaLR(o, lambda step: 0.9**step),
    ],
)
def test_optimizer_and_scheduler_go_on_behind_a_fold(schedule: Callable[..., Any]) -> None:
    torch.manual_seed(2)
    fossil = Fossil(
        linear(), drawn(5, 6), "0", LOW_RANK, optimizer=lambda p: torch.optim.Adam(p, lr=0.01)
    )
    optimizer, scheduler = fossil.optimizer, schedule(fossil.optimizer)
    target = drawn(5, 3)

    def train(steps: int) -> float:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (fossil.model(fossil.x) - target).square().mean()
            loss.backward()
            optimizer.step()
            scheduler.step()
        return loss.item()

    train(10)
    moments = {p: optimizer.state[p]["exp_avg"].clone() for p in fossil.model[0].host.parameters()}
    group, rate = optimizer.param_groups[0], optimizer.param_groups[0]["lr"]
    fossil.fold()
    assert optimizer.param_groups[0] is group
    assert group["params"] == list(fossil.model.parameters())
    assert set(optimizer.state) == set(fossil.model.parameters())
    for parameter, moment in moments.items():
        assert torch.equal(optimizer.state[parameter]["exp_avg"], moment)
    assert group["lr"] == rate
    first = train(1)
    assert group["lr"] != rate
    assert train(20) < first
    again = torch.optim.Adam(linear().parameters())
    again.load_state_dict(optimizer.state_dict())
