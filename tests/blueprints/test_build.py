"""Building seeds: shapes, silence at birth, determinism, and a random state left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from esper.blueprints.build import Signature, applies, build, parameter_count
from esper.blueprints.ir import (
    Activation,
    Add,
    Blueprint,
    BlueprintError,
    Conv,
    Depthwise,
    Flatten,
    GlobalPool,
    LayerNorm,
    Linear,
    Multiply,
    Node,
    Pool,
    Reinterpret,
    Scale,
    Size,
)
from esper.blueprints.library import LIBRARY, WIDEN

SIGNATURES = {
    "mlp": Signature((64,), 0, (8,), 0),
    "logits": Signature((40,), 0, (10,), 0),
    "same": Signature((8,), 0, (8,), 0),
    "plane": Signature((4, 8, 6), 0, (4, 8, 6), 0),
    "tokens": Signature((12, 6), 1, (12, 6), 1),
}
OUT = Size("out")
ONE = Size("one", 3)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fitting() -> list[tuple[str, str]]:
    return [
        (name, place)
        for name, blueprint in LIBRARY.items()
        for place, signature in SIGNATURES.items()
        if applies(blueprint, signature) is None
    ]


def span(*nodes: Node) -> Blueprint:
    return Blueprint("trial", "span", nodes)


def test_every_blueprint_of_the_library_fits_somewhere() -> None:
    assert {name for name, _ in fitting()} == set(LIBRARY)


@pytest.mark.parametrize(("name", "place"), fitting())
def test_a_fresh_seed_is_no_change_and_learns(name: str, place: str) -> None:
    signature = SIGNATURES[place]
    seed = build(LIBRARY[name], signature, seeded())
    x = torch.randn(5, *signature.in_shape, generator=seeded(2))
    target = torch.randn(5, *signature.out_shape, generator=seeded(3))
    delta = seed(x)
    assert delta.shape == (5, *signature.out_shape)
    assert delta.is_contiguous()
    assert not delta.any()
    assert sum(p.numel() for p in seed.parameters()) == parameter_count(LIBRARY[name], signature)
    optimizer = torch.optim.Adam(seed.parameters(), lr=1e-2)
    first = F.mse_loss(delta, target).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.mse_loss(seed(x), target)
        loss.backward()
        optimizer.step()
    assert loss.item() < first
    assert all(p.grad is not None and p.grad.any() for p in seed.parameters())


@pytest.mark.parametrize(("name", "place"), fitting())
def test_birth_depends_on_the_generator_alone(name: str, place: str) -> None:
    def born(seed: int) -> dict[str, torch.Tensor]:
        return build(LIBRARY[name], SIGNATURES[place], seeded(seed)).state_dict()

    before = torch.get_rng_state()
    first = born(7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    second, other = born(7), born(8)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_batches_of_one_and_none_pass() -> None:
    seed = build(LIBRARY["conv1d_stack"], SIGNATURES["logits"], seeded())
    assert seed(torch.zeros(1, 40)).shape == (1, 10)
    assert seed(torch.zeros(0, 40)).shape == (0, 10)


def test_dtype_does_not_change_what_is_drawn() -> None:
    signature = SIGNATURES["mlp"]
    double = Signature(signature.in_shape, 0, signature.out_shape, 0, dtype=torch.float64)
    a, b = build(WIDEN, signature, seeded()), build(WIDEN, double, seeded())
    for name, parameter in a.state_dict().items():
        assert b.state_dict()[name].dtype == torch.float64
        assert torch.equal(parameter.double(), b.state_dict()[name])


def test_a_plane_is_treated_at_each_position_by_a_pointwise_blueprint() -> None:
    seed = build(LIBRARY["bottleneck_mlp"], SIGNATURES["plane"], seeded())
    with torch.no_grad():
        for parameter in seed.parameters():
            parameter.normal_(generator=seeded(4))
    x = torch.randn(2, 4, 8, 6, generator=seeded(5))
    y = x.clone()
    y[:, :, 3, 2] += 1.0
    changed = (seed(x) != seed(y)).any(dim=(0, 1))
    assert changed[3, 2]
    assert changed.sum() == 1


def test_every_operation_builds_and_agrees_with_its_counted_parameters() -> None:
    x = Reinterpret(0, "signal")
    signal = span(
        x,
        Conv(1, ONE, kernel=3),
        LayerNorm(2),
        Activation(3, "gelu"),
        Depthwise(4, kernel=3),
        Add(4, 5),
        Scale(6),
        Pool(7, "maximum", window=2, stride=2),
        Flatten(8),
        Linear(9, OUT, init="zero"),
    )
    pooled = span(
        x,
        Conv(1, ONE, kernel=4, stride=2),
        GlobalPool(2, "average"),
        Linear(0, ONE),
        Activation(4, "sigmoid"),
        Multiply(3, 5),
        Linear(6, OUT, init="zero"),
    )
    grid = span(
        Reinterpret(0, "grid"),
        Conv(1, ONE, kernel=3),
        LayerNorm(2),
        Pool(3, "average", window=3, stride=2),
        Depthwise(4, kernel=3, stride=2),
        GlobalPool(5, "maximum"),
        LayerNorm(6),
        Linear(7, OUT, init="zero"),
    )
    for blueprint in (signal, pooled, grid):
        seed = build(blueprint, SIGNATURES["mlp"], seeded())
        assert seed(torch.ones(3, 64)).shape == (3, 8)
        count = sum(p.numel() for p in seed.parameters())
        assert count == parameter_count(blueprint, SIGNATURES["mlp"])


def test_a_frozen_random_seed_speaks_at_once_and_never_learns() -> None:
    frozen = Blueprint("frozen", "output", (Linear(0, OUT, init="normal", trainable=False),))
    seed = build(frozen, SIGNATURES["same"], seeded())
    assert seed(torch.ones(2, 8)).abs().sum() > 0
    assert not any(p.requires_grad for p in seed.parameters())


def test_a_seed_can_be_copied_and_its_state_loaded() -> None:
    seed = build(WIDEN, SIGNATURES["mlp"], seeded(1))
    twin = copy.deepcopy(seed)
    other = build(WIDEN, SIGNATURES["mlp"], seeded(2))
    other.load_state_dict(seed.state_dict())
    for a, b, c in zip(seed.parameters(), twin.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize(
    ("name", "place", "reason"),
    [
        ("low_rank", "mlp", "reads a slot's own output"),
        ("conv2d_stack", "logits", "square"),
        ("conv1d_stack", "plane", "cannot be read as a signal"),
        ("conv1d_stack", "tokens", "may be steps in time"),
        ("separable_conv", "tokens", "cannot be read as a grid"),
    ],
)
def test_what_does_not_fit_says_why(name: str, place: str, reason: str) -> None:
    told = applies(LIBRARY[name], SIGNATURES[place])
    assert told is not None
    assert reason in told
    with pytest.raises(BlueprintError, match=name):
        build(LIBRARY[name], SIGNATURES[place], seeded())


@pytest.mark.parametrize(
    ("blueprint", "signature", "reason"),
    [
        (WIDEN, Signature((8,), 0, (8,), 0, dtype=torch.int64), "floating point"),
        (WIDEN, Signature((), 0, (8,), 0), "at least one dimension"),
        (WIDEN, Signature((8,), 1, (8,), 0), "feature axis"),
        (WIDEN, Signature((8,), 0, (1 << 20,), 0), "limit"),
        (
            span(
                Reinterpret(0, "signal"),
                Conv(1, ONE, 64, 64),
                Flatten(2),
                Linear(3, OUT, init="zero"),
            ),
            Signature((1 << 19,), 0, (1 << 19,), 0),
            "limit",
        ),
        (
            span(
                Reinterpret(0, "signal"),
                Pool(1, "average", 9, 1),
                Flatten(2),
                Linear(3, OUT, init="zero"),
            ),
            SIGNATURES["same"],
            "too short",
        ),
        (span(Linear(0, ONE), Add(0, 1), Linear(2, OUT, init="zero")), SIGNATURES["same"], "alike"),
    ],
)
def test_impossible_slots_are_refused_with_a_reason(
    blueprint: Blueprint, signature: Signature, reason: str
) -> None:
    assert reason in (applies(blueprint, signature) or "")
