"""Seeds in TRAINING leave no trace: trials against a host without them, and with a guard gone.

The long campaign is ``python -m benchmarks.isolation_campaign`` (500 trials of 1,000 steps); here
run the first 20 of its trials.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from benchmarks.isolation_campaign import Plan, Restless, plan, run_trial
from esper.kasmina import isolation, shadow, shared
from esper.kasmina.check import reachable_leaves
from esper.kasmina.errors import IsolationError
from esper.kasmina.isolation import HostGuard, seed_everything
from esper.kasmina.lattice import Lattice
from esper.kasmina.seed import Seed, switched_on
from esper.kasmina.shadow import held_out_losses, shadow_step
from esper.kasmina.slots import find_slots
from esper_events.stages import Stage
from support.hosts import bits, classify, differing, mlp, sgd_seed

STEPS = 1000
FEW = 70
TRIALS = {"in a shared pass": (8, shared), "in a pass of its own": (30, shadow)}
"""Trials of two seeds and of one, and where their passes are."""


Removal = Callable[[pytest.MonkeyPatch, ModuleType], None]
"""Takes one guard out of the passes of one module."""


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("first", range(0, 20, 5))
def test_a_host_beside_seeds_ends_with_the_bits_of_the_host_alone(first: int) -> None:
    """In a process of its own, whose second thread waits without holding a core busy."""
    command = [sys.executable, "-m", "benchmarks.isolation_campaign", "--trials", "5"]
    command += ["--steps", str(STEPS), "--first", str(first)]
    found = subprocess.run(
        command,
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "0 hosts differ; of the A/A controls 0 differ" in found.stdout, (
        found.stdout + found.stderr
    )
    assert int(found.stdout.split(" steps, ")[1].split()[0]) > STEPS, "shadow steps were made"
    assert found.returncode == 0


def test_the_trials_cover_one_thread_and_two_every_optimizer_and_several_seeds() -> None:
    plans: list[Plan] = [plan(number) for number in range(20)]
    assert {p.threads for p in plans} == {1, 2}
    assert {p.optimizer for p in plans} == {"sgd", "adam", "adamw"}
    assert {p.seeds for p in plans} == {1, 2, 3, 4}


class Lets(HostGuard):
    """A guard with a hole: what ``keep`` captures at the end of a pass comes back after it."""

    keep: Callable[[nn.Module], Callable[[], None]]

    def __exit__(self, *error: object) -> None:
        undo = type(self).keep(self._model)
        super().__exit__(*error)
        undo()


def _torch_state(_: nn.Module) -> Callable[[], None]:
    state = torch.get_rng_state()
    return lambda: torch.set_rng_state(state)


def _python_state(_: nn.Module) -> Callable[[], None]:
    state = random.getstate()
    return lambda: random.setstate(state)


def _numpy_state(_: nn.Module) -> Callable[[], None]:
    state = np.random.get_state()
    return lambda: np.random.set_state(state)


def _plain_attributes(model: nn.Module) -> Callable[[], None]:
    (restless,) = (module for module in model.modules() if isinstance(module, Restless))
    calls = restless.calls

    def undo() -> None:
        restless.calls = calls

    return undo


def _let(keep: Callable[[nn.Module], Callable[[], None]]) -> Removal:
    def remove(monkeypatch: pytest.MonkeyPatch, where: ModuleType) -> None:
        lets = type("Lets", (Lets,), {"keep": staticmethod(keep)})
        monkeypatch.setattr(where, "HostGuard", lets)

    return remove


def _uncopied(function: str) -> Removal:
    class Uncopied(HostGuard):
        def __enter__(self) -> HostGuard:
            self._patch = pytest.MonkeyPatch()
            self._patch.setattr(isolation, function, lambda *_: None)
            return super().__enter__()

        def __exit__(self, *error: object) -> None:
            self._patch.undo()
            super().__exit__(*error)

    return lambda monkeypatch, where: monkeypatch.setattr(where, "HostGuard", Uncopied)


def _unfrozen(monkeypatch: pytest.MonkeyPatch, where: ModuleType) -> None:
    monkeypatch.setattr(where, "HostGuard", lambda model, **_: HostGuard(model, freeze=False))


def _gradients_everywhere(monkeypatch: pytest.MonkeyPatch, where: ModuleType) -> None:
    """The two guards of the host's gradients at once: each alone makes the other redundant."""

    def backward(loss: Tensor, wanted: list[Tensor], **_: Any) -> list[Tensor | None]:
        loss.backward()
        return [tensor.grad for tensor in wanted]

    everywhere = SimpleNamespace(**vars(torch) | {"autograd": SimpleNamespace(grad=backward)})
    _unfrozen(monkeypatch, where)
    monkeypatch.setattr(where, "torch", everywhere)


def _seeds_inside(monkeypatch: pytest.MonkeyPatch, _: ModuleType) -> None:
    """Register a seed in the model as it begins to train, though nothing calls it there."""
    advance = Lattice.advance

    def inside(self: Lattice, grown: Seed, stage: Stage) -> None:
        advance(self, grown, stage)
        if stage is Stage.TRAINING:
            self.model.get_submodule("0").add_module(f"seed{grown.id}", grown.body)

    monkeypatch.setattr(Lattice, "advance", inside)


MUTATIONS: dict[str, tuple[Removal, str]] = {
    "torch's generator": (_let(_torch_state), "random.torch"),
    "Python's generator": (_let(_python_state), "random.python"),
    "NumPy's generator": (_let(_numpy_state), "random.numpy"),
    "buffers": (_uncopied("_copy_buffers"), "model.1.running_mean"),
    "mutable attributes": (_uncopied("_copy_mutable"), "module.4"),
    "plain attributes": (_let(_plain_attributes), "module.4"),
    "gradients": (_gradients_everywhere, "grad."),
    "parameters": (_seeds_inside, "model.0.seed"),
}


@pytest.mark.parametrize("place", TRIALS)
@pytest.mark.parametrize("guard", MUTATIONS)
def test_a_trial_without_this_guard_names_the_step_and_the_tensor(
    guard: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (remove, named), (number, where) = MUTATIONS[guard], TRIALS[place]
    remove(monkeypatch, where)
    result = run_trial(number, FEW)
    step, _, name = result.difference.partition(": ")
    assert result.control == ""
    assert 49 <= int(step.removeprefix("step ")) < FEW, "nothing of a seed runs before step 49"
    assert named in name


@pytest.mark.parametrize("place", TRIALS)
def test_gradients_asked_for_the_seed_alone_leave_an_unfrozen_host_alone(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, where = TRIALS[place]
    _unfrozen(monkeypatch, where)
    result = run_trial(number, FEW)
    assert result.shadow_steps > 0
    assert (result.control, result.difference) == ("", "")


def test_a_seeds_addition_reaches_nothing_of_an_unfrozen_host() -> None:
    model, x = mlp(), torch.randn(8, 6)
    for name in ("1", "0..4"):
        seed = sgd_seed(find_slots(model, lambda: model(x)).slots[name])
        added: list[Tensor] = []
        seed.body.register_forward_hook(lambda *call, added=added: added.append(call[2]))
        with switched_on(model, seed):
            model(x)
        own = {id(parameter) for parameter in seed.parameters}
        assert {id(leaf) for leaf in reachable_leaves(added[0])} == own


class Awkward(nn.Module):
    """Keeps state in every way that is no plain buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = spectral_norm(nn.Linear(6, 6))
        self.head = nn.Linear(6, 3)
        self.last: Tensor | None = None
        self.seen: dict[str, list[Tensor]] = {"h": []}
        self.noise = torch.Generator().manual_seed(3)
        self.register_buffer("table", torch.zeros(4))
        self.register_buffer("row", self.table[1:3])
        self.register_buffer("cache", None)
        self.__dict__["teacher"] = nn.BatchNorm1d(6)
        self.alias = self.table

    def forward(self, x: Tensor) -> Tensor:
        h = self.normed(x) + 0.1 * self.teacher(x)
        h = h + 0.1 * torch.randn(h.shape, generator=self.noise)
        if self.last is not None:
            h = h + 0.01 * self.last.detach().mean() + self.row.sum()
        self.last, self.cache = h, h.detach().clone()
        self.seen["h"] = [*self.seen["h"][-2:], h]
        self.table += 0.01 * torch.rand(4)
        self.alias.mul_(0.9)
        result: Tensor = self.head(torch.relu(h))
        return result


def course(*, beside: bool, steps: int = 12) -> tuple[Awkward, dict[str, str], Tensor, list[float]]:
    """Train an awkward host, with shadow passes after every step or without."""
    seed_everything(5)
    model = Awkward()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batch = torch.randn(8, 6), torch.randint(3, (8,))
    loss_fn = classify(model)
    losses = []
    slots = find_slots(model, lambda: model(batch[0])).slots if beside else {}
    with torch.random.fork_rng():
        seeds = [sgd_seed(slots[name]) for name in ("normed", "normed..head") if beside]
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_fn(batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        for seed in seeds:
            shadow_step(model, seed, loss_fn, batch, step)
            held_out_losses(model, loss_fn, [batch], seed)
    return model, bits(model, optimizer), model.noise.get_state(), losses


def test_a_host_with_awkward_state_keeps_its_bits_beside_seeds() -> None:
    alone, beside = course(beside=False), course(beside=True)
    # The text of the root's attributes holds the address of its generator.
    assert differing(alone[1], beside[1]) == ["attributes "]
    assert torch.equal(alone[2], beside[2])
    assert alone[3] == beside[3]
    model = beside[0]
    assert model.alias is model.table
    assert model.row.data_ptr() == model.table[1:3].data_ptr()
    assert torch.equal(alone[0].teacher.running_mean, model.teacher.running_mean)
    assert model.last is model.seen["h"][-1]
    assert model.last.grad_fn is not None


class Building(nn.Module):
    """Makes its layer anew in every pass."""

    def forward(self, x: Tensor) -> Tensor:
        self.layer = nn.Linear(x.shape[-1], 2)
        result: Tensor = self.layer(x)
        return result


def test_what_a_pass_builds_into_the_host_is_gone_afterwards() -> None:
    model = Building()
    model(torch.randn(2, 3))
    layer = model.layer
    with HostGuard(model):
        model(torch.randn(2, 5))
        assert model.layer is not layer
    assert model.layer is layer and list(model.children()) == [layer]


def test_copies_of_buffers_share_memory_where_the_buffers_do() -> None:
    model = Awkward()
    with HostGuard(model):
        model.table.fill_(7.0)
        assert model.row.tolist() == [7.0, 7.0]
        assert model.alias is model.table
    assert model.table.tolist() == [0.0] * 4


@pytest.mark.parametrize("value", [threading.Lock(), (number for number in range(3))])
def test_state_that_cannot_be_copied_is_named(value: object) -> None:
    model = mlp()
    model[2].handle = {"inner": value}
    before = bits(model)
    with pytest.raises(
        IsolationError, match=r"attribute 'handle' of ReLU \(dict\) cannot be copied"
    ):
        HostGuard(model).__enter__()
    assert differing(before, bits(model)) == []


def test_what_never_changes_needs_no_copy() -> None:
    model = mlp()
    model[2].library, model[2].function = torch, torch.relu
    with HostGuard(model):
        assert model[2].library is torch
    assert model[2].function is torch.relu


def test_frozen_parameters_and_modes_return_as_they_were_even_after_an_error() -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)
    model[1].eval()
    x = torch.randn(4, 6)

    def fail() -> None:
        with HostGuard(model):
            assert not any(parameter.requires_grad for parameter in model.parameters())
            model.train()(x)
            raise ZeroDivisionError

    before = bits(model)
    with pytest.raises(ZeroDivisionError):
        fail()
    assert differing(before, bits(model)) == []
