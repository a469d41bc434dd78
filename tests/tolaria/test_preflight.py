"""``esper.check_isolation``: which slots of a model keep their host apart from a seed, and why."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import esper
from esper.kasmina.errors import ObjectiveError
from esper.tolaria import preflight
from support.grown import grow
from support.hosts import HOSTS, bits, classify, differing, mlp


@pytest.fixture(autouse=True)
def quiet() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("with_loss", [False, True])
def test_every_slot_of_ordinary_hosts_is_isolated_and_nothing_moves(
    name: str, with_loss: bool
) -> None:
    model, x = HOSTS[name]()
    y = torch.randint(3, (len(x),))
    classify(model)((x, y)).backward()
    before = bits(model)
    loss_fn = classify(model) if with_loss else None
    report = esper.check_isolation(model, (x, y), loss_fn)
    assert differing(before, bits(model)) == []
    assert report.ok, str(report)
    text = str(report)
    assert text.startswith(f"isolation: {len(report.slots)} of {len(report.slots)} slots ok\n")
    assert all(slot.slot in text and slot.blueprint in text for slot in report.slots)
    assert all(f"no slot on {module}: {why}" in text for module, why in report.left_out.items())


def test_a_batch_may_be_the_input_itself_and_a_grown_model_is_checked_too() -> None:
    model, x = mlp(), torch.randn(8, 6)
    assert esper.check_isolation(model, x).ok
    assert esper.check_isolation(grow(model, x, ("0..4", "widen"), ("0", "low_rank")), [x]).ok


class Checkpointed(nn.Module):
    """``[batch, 6]`` to ``[batch, 3]`` with its middle under activation checkpointing."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        middle = checkpoint(self.b, torch.relu(self.a(x)), use_reentrant=self.reentrant)
        return self.c(torch.relu(middle))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_is_refused_where_it_hurts_and_only_there() -> None:
    x = torch.randn(4, 6)
    report = esper.check_isolation(Checkpointed(True), x)
    assert not report.ok
    verdicts = {slot.slot: "; ".join(slot.problems) for slot in report.slots}
    assert verdicts["c"] == verdicts["b..c"] == ""
    for slot in ("a", "b", "a..a", "a..b", "b..b"):
        assert "reentrant" in verdicts[slot]
        assert "use_reentrant=False" in verdicts[slot]
    report = esper.check_isolation(Checkpointed(False), x)
    assert {slot.slot for slot in report.slots if not slot.ok} == {"a..b"}


class Shared(nn.Module):
    """Calls one layer twice; has another under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.named, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.alias = self.named

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.alias(self.twice(self.twice(x))))


def test_shared_modules_carry_no_slot_and_the_rest_is_isolated() -> None:
    report = esper.check_isolation(Shared(), torch.randn(4, 6))
    assert report.ok
    assert {slot.slot for slot in report.slots} == {"head", "head..head"}
    assert report.left_out["twice"] == "called 2 times in one forward pass"
    assert report.left_out["named"].startswith("shared: the module stands under several names")


def test_state_that_cannot_be_copied_refuses_the_model() -> None:
    model = mlp()
    model.stream = (i for i in range(3))
    report = esper.check_isolation(model, torch.randn(8, 6))
    assert not report.ok
    assert "attribute 'stream' of Sequential (generator) cannot be copied" in report.refused
    assert str(report).startswith("isolation: refused\n  attribute 'stream'")


def test_a_host_that_differs_from_itself_is_refused() -> None:
    model, count = mlp(), itertools.count(1)
    report = esper.check_isolation(
        model, torch.randn(8, 6), lambda x: model(x).square().mean() * next(count)
    )
    assert (
        "two passes of the host alone over one batch differ in loss, gradient of" in report.refused
    )


def test_a_host_without_slots_and_one_without_a_tensor_are_refused() -> None:
    report = esper.check_isolation(nn.Sequential(nn.ReLU()), torch.randn(4, 6))
    assert "the host has no slot" in report.refused

    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), x

    model = nn.Sequential(nn.Linear(6, 6), Pair(6, 6))
    report = esper.check_isolation(model, torch.randn(4, 6))
    assert report.refused == "the model returned tuple, wanted a tensor: pass loss_fn"
    assert issubclass(ObjectiveError, Exception)
    assert esper.check_isolation(model, torch.randn(4, 6), lambda x: model(x)[0].mean()).ok


@pytest.mark.parametrize("what", ["parameter", "gradient", "buffer", "random state"])
def test_a_shadow_pass_that_leaves_a_trace_is_found(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = preflight.shadow_step

    def leaky(model: nn.Module, *rest: object) -> float:
        loss = honest(model, *rest)  # type: ignore[arg-type]
        with torch.no_grad():
            if what == "parameter":
                next(model.parameters()).view(-1)[0] += 1e-6
            elif what == "gradient":
                next(model.parameters()).grad = torch.zeros(8, 6)
            elif what == "buffer":
                next(model.buffers()).view(-1)[0] += 1e-6
            else:
                torch.rand(1)
        return loss

    monkeypatch.setattr(preflight, "shadow_step", leaky)
    report = esper.check_isolation(mlp(), torch.randn(8, 6))
    first = report.slots[0]
    assert not first.ok
    assert what in first.problems[0]
    assert first.problems[0].endswith("changed")
