"""Many equal seeds of a slot in one call: as if each body had been called."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from esper.blueprints.ir import Blueprint
from esper.blueprints.library import LIBRARY
from esper.kasmina import ops, residual
from esper.kasmina.shadow import held_out_losses, shadow_step
from esper.kasmina.shared import shared_losses
from esper.kasmina.slots import find_slots
from support.hosts import Tokens, bits, classify, differing, mlp
from support.shared_passes import (
    LOW_RANK,
    SequenceFirst,
    Setting,
    double,
    doubles,
    labels,
    planted,
    seeds_of,
    through,
    together,
)

pytestmark = pytest.mark.usefixtures("quiet")


def sequence_first(*groups: tuple[str, Blueprint, int]) -> Setting:
    return planted(SequenceFirst().double(), doubles(8, 5, 6), *groups)


RELU, GELU = through("relu"), through("gelu")
SETTINGS: dict[str, tuple[Callable[[], Setting], list[int]]] = {
    "one slot": (lambda: planted(*double("mlp"), ("0", LOW_RANK, 8)), [8]),
    "two kinds in one slot": (
        lambda: planted(*double("mlp"), ("0", RELU, 6), ("0", GELU, 7), ("0", LOW_RANK, 6)),
        [6, 6, 7],
    ),
    "with others": (
        lambda: planted(
            *double("mlp"), ("0", RELU, 6), ("0", LIBRARY["gated_mlp"], 2), ("0", LOW_RANK, 3)
        ),
        [6],
    ),
    "two ends": (lambda: planted(*double("mlp"), ("0", RELU, 6), ("4", RELU, 7)), [6, 7]),
    "a span": (lambda: planted(*double("mlp"), ("0..4", through("tanh", "span"), 6)), [6]),
    "tokens": (lambda: planted(*double("tokens"), ("mix", GELU, 6), ("norm", RELU, 1)), [6]),
    "sequence first": (lambda: sequence_first(("norm", RELU, 6), ("rnn", LOW_RANK, 6)), [6, 6]),
    "sequence first, one end": (lambda: sequence_first(("norm", RELU, 6)), [6]),
    "few": (lambda: planted(*double("mlp"), ("0", RELU, 5), ("4", RELU, 5)), []),
    "convolutions": (lambda: planted(*double("cnn"), ("0", RELU, 6)), []),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_equal_seeds_learn_in_one_call_as_each_would_alone(name: str, calls: list[int]) -> None:
    make, wanted = SETTINGS[name]
    found = make()
    alone, before = found.copies(), bits(found.model)
    for draw in (1, 2):
        losses = together(found, draw=draw)
        assert sorted(calls) == sorted(wanted), "once, for a host that draws too"
        calls.clear()
        own = [shadow_step(found.model, s, found.loss_fn, found.batch, draw) for s in alone]
        assert losses == pytest.approx(own, rel=1e-12)
        for seed, other in zip(found.seeds, alone, strict=True):
            for p, q in zip(seed.parameters, other.parameters, strict=True):
                assert torch.allclose(p, q, rtol=1e-11, atol=1e-12)
    assert len({round(loss, 9) for loss in own}) == len(own), "each has a loss of its own"
    measured = shared_losses(found.model, found.seeds, found.loss_fn, [found.batch])
    for seed, values in zip(alone, measured, strict=True):
        own = held_out_losses(found.model, found.loss_fn, [found.batch], seed)
        assert values == pytest.approx(own, rel=1e-12)
    assert differing(before, bits(found.model)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_call_is_as_near_to_double_as_rounding_lets_it(
    dtype: torch.dtype, calls: list[int]
) -> None:
    def of(dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(0)
        model = mlp().eval()
        found = planted(model, torch.randn(16, 6), ("0", GELU, 6))
        for module in (model, *(seed.body for seed in found.seeds)):
            module.to(dtype)
        x, y = found.batch
        found.batch = x.to(torch.bfloat16).to(dtype), y
        for seed in found.seeds:
            seed.slot = find_slots(model, lambda: model(found.batch[0])).slots["0"]
            seed.optimizer.param_groups[0]["lr"] = 100.0  # A step is not lost in its rounding.
        parameters = [p for seed in found.seeds for p in seed.parameters]
        before = [p.detach().clone().double() for p in parameters]
        together(found)
        after = [p.detach().double() for p in parameters]
        return [b - a for a, b in zip(before, after, strict=True)]

    got, wanted = of(dtype), of(torch.float64)
    assert calls == [6, 6]
    rtol, atol = (1e-4, 1e-4) if dtype is torch.float32 else (0.1, 0.1)
    for one, other in zip(got, wanted, strict=True):
        assert torch.allclose(one, other, rtol=rtol, atol=atol)


def steps(found: Setting, count: int = 3) -> list[Tensor]:
    losses = [torch.tensor(together(found, draw=draw)) for draw in range(count)]
    return [*losses, *(p.detach().clone() for s in found.seeds for p in s.parameters)]


def test_the_bits_are_those_of_a_rerun_with_or_without_nodes_in_cpp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run() -> list[Tensor]:
        torch.manual_seed(0)
        return steps(planted(mlp(), torch.randn(8, 6), ("0", RELU, 7), ("4", LOW_RANK, 6)))

    first = run()
    assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
    monkeypatch.setattr(ops, "_node", None)
    monkeypatch.setattr(residual, "_node", None)
    assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_no_seed_reaches_another_in_one_call() -> None:
    """Whatever one holds, the bits of the others are the same."""

    def run(last: float) -> list[Tensor]:
        torch.manual_seed(0)
        found = planted(mlp(), torch.randn(8, 6), ("0", RELU, 6))
        found.seeds[-1].body.nodes[2].bias.data.fill_(last)
        return [p.detach().clone() for _ in range(2) for p in _after(found)]

    def _after(found: Setting) -> Iterator[Tensor]:
        together(found)
        for seed in found.seeds[:-1]:
            yield from seed.parameters

    for last in (1e30, math.inf, math.nan):
        assert all(torch.equal(a, b) for a, b in zip(run(0.0), run(last), strict=True))


class Overwriting(nn.Module):
    """Writes over what a seed reads in "a" and in "a..b", when these have run."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        h = self.a(x)
        h.mul_(2.0)
        h = self.b(h)
        x.mul_(3.0)
        logits: Tensor = self.head(h + x)
        return logits


@pytest.mark.parametrize("name", ["a", "a..b"])
def test_seeds_read_what_the_host_writes_over_later(name: str, calls: list[int]) -> None:
    model, x = Overwriting().double(), doubles(8, 6)
    slot = find_slots(model, lambda: model(x)).slots[name]
    seeds = seeds_of(slot, through("tanh", slot.source), 6)
    found = Setting(model, (x, labels(x, 3)), classify(model), seeds)
    own = [held_out_losses(model, found.loss_fn, [found.batch], s)[0] for s in seeds]
    assert together(found) == pytest.approx(own, rel=1e-12) and calls == [6]


def test_tokens_of_a_transformer_are_rows_of_one_call(calls: list[int]) -> None:
    found = planted(Tokens().double(), torch.randint(11, (8, 5)), ("norm", GELU, 16))
    assert len({round(loss, 9) for loss in together(found)}) == 16  # type: ignore[arg-type]
    assert calls == [16]
