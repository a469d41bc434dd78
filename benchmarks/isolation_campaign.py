"""The isolation campaign: seeds in TRAINING leave no trace in their host, bit for bit.

A trial trains one host three times from the same start: alone, alone again (the A/A control),
and beside seeds in TRAINING. Afterwards parameters, gradients, buffers, module state, optimizer
state and the random states of torch, Python and NumPy must be the same bits. Hosts have dropout
and BatchNorm, and a module that draws from Python's and NumPy's generators and counts in a plain
attribute; their gradients are clipped by the norm over all parameters of the model; optimizers,
seeds and the thread count vary. A trial that differs is run again step by step, and the first
step and tensor that differ are named.

Two threads that share their cores with other processes wait for each other at full speed:
``OMP_WAIT_POLICY=PASSIVE`` in the environment saves most of that time.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import random
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from esper.blueprints.library import LIBRARY
from esper.kasmina.digest import tensor_bytes
from esper.kasmina.isolation import seed_everything
from esper.log.event_log import EventLog
from esper.log.memory import MemoryStore
from esper.tamiyo.interface import Advance, Germinate, Observation, Proposal
from esper.tolaria.growth import Growth
from esper.tolaria.settings import GrowthSettings
from esper.tolaria.training import Batch, classification_loss
from esper_events.keys import SigningKey
from esper_events.stages import Stage

FEATURES, CLASSES, BATCH = 16, 5, 16


class Restless(nn.Module):
    """Adds noise from Python's and NumPy's generators, and keeps state that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.history: deque[float] = deque(maxlen=8)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, features]`` with a little noise, the more often called the less."""
        self.calls += 1
        self.history.append(random.random() + float(np.random.rand()))
        return x * (1.0 + 0.01 * self.history[-1] / self.calls)


@dataclass(frozen=True)
class Plan:
    """What one trial does, drawn from its number."""

    number: int
    width: int
    dropout: float
    optimizer: str
    seeds: int
    shadow_every: int
    threads: int


def plan(number: int) -> Plan:
    """The trial of that number; its draws touch no global generator."""
    draw = random.Random(number)
    return Plan(
        number=number,
        width=draw.choice((4, 8, 16)),
        dropout=draw.choice((0.1, 0.3, 0.5)),
        optimizer=draw.choice(("sgd", "adam", "adamw")),
        seeds=draw.randint(1, 4),
        shadow_every=draw.choice((1, 2, 5)),
        threads=1 + number % 2,
    )


class Hold:
    """A controller that germinates as many seeds as it is told and keeps them in TRAINING."""

    def __init__(self, plan: Plan) -> None:
        self._draw = random.Random(plan.number)
        self._wanted = plan.seeds

    def decide(self, observation: Observation) -> list[Proposal]:
        """Germinate at the first chance; then enter the trial and stay there."""
        if self._wanted:
            chosen = self._draw.sample(observation.candidates, self._wanted)
            self._wanted = 0
            return [Germinate(c.slot, c.blueprint, "isolation trial") for c in chosen]
        return [
            Advance(seed.id, "isolation trial")
            for seed in observation.seeds
            if seed.stage is Stage.GERMINATED and not seed.pending
        ]


Snapshot = dict[str, bytes]


@dataclass
class Course:
    """How one training went: every step's loss, the state at its end, or at every step."""

    losses: list[float] = field(default_factory=list)
    states: list[Snapshot] = field(default_factory=list)
    shadow_steps: int = 0


def train(plan: Plan, steps: int, *, beside_seeds: bool, every_step: bool = False) -> Course:
    """Train the trial's host once."""
    torch.set_num_threads(plan.threads)
    seed_everything(plan.number)
    model = _host(plan)
    optimizer = _optimizer(plan, model)
    loss_fn = classification_loss(model)
    data = _data(plan)
    random_state = torch.default_generator.get_state()
    growth = _growth(plan, model, optimizer, loss_fn, data) if beside_seeds else None
    if not torch.equal(random_state, torch.default_generator.get_state()):
        raise RuntimeError("starting growth has moved torch's generator")
    course = Course()
    model.train()
    for step in range(steps):
        batch = data[step % len(data)]
        loss = loss_fn(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if growth is not None:
            growth.step(batch, loss.detach())
        course.losses.append(float(loss.detach()))
        if every_step:
            course.states.append(snapshot(model, optimizer))
    course.states.append(snapshot(model, optimizer))
    if growth is not None and growth.engine is not None:
        course.shadow_steps = sum(t.seed.shadow_steps for t in growth.engine.trials.values())
        growth.close()
    return course


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> Snapshot:
    """The bits of everything that a seed could have touched, by name."""
    state = {f"model.{name}": tensor_bytes(value) for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        state[f"learns.{name}"] = str(parameter.requires_grad).encode()
        state[f"grad.{name}"] = b"" if parameter.grad is None else tensor_bytes(parameter.grad)
    for index, entries in enumerate(optimizer.state.values()):
        for name, value in entries.items():
            raw = tensor_bytes(value) if isinstance(value, Tensor) else pickle.dumps(value)
            state[f"optimizer.{index}.{name}"] = raw
    for name, module in model.named_modules():
        if isinstance(module, Restless):
            state[f"module.{name}"] = pickle.dumps((module.calls, module.history))
    state["random.torch"] = tensor_bytes(torch.default_generator.get_state())
    state["random.python"] = pickle.dumps(random.getstate())
    state["random.numpy"] = pickle.dumps(np.random.get_state())
    return {name: hashlib.sha256(raw).digest() for name, raw in state.items()}


@dataclass(frozen=True)
class Result:
    """The outcome of one trial; ``difference`` is empty when all bits agree."""

    plan: Plan
    control: str
    difference: str
    shadow_steps: int


def run_trial(number: int, steps: int) -> Result:
    """Train alone, alone again, and beside seeds; compare."""
    drawn = plan(number)
    alone = train(drawn, steps, beside_seeds=False)
    again = train(drawn, steps, beside_seeds=False)
    beside = train(drawn, steps, beside_seeds=True)
    return Result(
        drawn,
        control=_difference(drawn, steps, alone, again, beside_seeds=False),
        difference=_difference(drawn, steps, alone, beside, beside_seeds=True),
        shadow_steps=beside.shadow_steps,
    )


def _difference(plan: Plan, steps: int, a: Course, b: Course, *, beside_seeds: bool) -> str:
    """Where two courses part: the first step and the first name; empty when they never do."""
    if a.losses == b.losses and a.states[-1] == b.states[-1]:
        return ""
    first = train(plan, steps, beside_seeds=False, every_step=True)
    second = train(plan, steps, beside_seeds=beside_seeds, every_step=True)
    for step, (left, right) in enumerate(zip(first.states, second.states, strict=True)):
        names = [name for name in {**left, **right} if left.get(name) != right.get(name)]
        if names:
            return f"step {step}: {names[0]} (and {len(names) - 1} more)"
    return "the two differed once and not when trained again"


def _host(plan: Plan) -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, plan.width),
        nn.BatchNorm1d(plan.width),
        nn.ReLU(),
        nn.Dropout(plan.dropout),
        Restless(),
        nn.Linear(plan.width, plan.width),
        nn.LayerNorm(plan.width),
        nn.ReLU(),
        nn.Dropout(plan.dropout),
        nn.Linear(plan.width, CLASSES),
    )


def _optimizer(plan: Plan, model: nn.Module) -> torch.optim.Optimizer:
    match plan.optimizer:
        case "sgd":
            return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        case "adam":
            return torch.optim.Adam(model.parameters(), lr=3e-3)
        case _:
            return torch.optim.AdamW(model.parameters(), lr=3e-3)


def _data(plan: Plan) -> list[Batch]:
    """Sixteen batches of points around random class centres."""
    generator = torch.Generator().manual_seed(plan.number)
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    batches = []
    for _ in range(16):
        y = torch.randint(CLASSES, (BATCH,), generator=generator)
        batches.append((centres[y] + torch.randn(BATCH, FEATURES, generator=generator), y))
    return batches


def _growth(
    plan: Plan,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable[[Any], Tensor],
    data: list[Batch],
) -> Growth:
    settings = GrowthSettings(
        observe_every=50, shadow_every=plan.shadow_every, lead=1, sync_decisions=True
    )
    return Growth(
        model,
        optimizer,
        loss_fn,
        data[:6],
        settings=settings,
        controller=Hold(plan),
        library=tuple(LIBRARY.values()),
        log=EventLog(MemoryStore(), SigningKey.generate(), f"isolation-{plan.number}"),
        seed=plan.number,
    )


def main() -> int:
    """Run the campaign and print what it found; exit 1 when any trial differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    begun, different, control, shadow_steps = time.perf_counter(), 0, 0, 0
    for number in range(arguments.first, arguments.first + arguments.trials):
        result = run_trial(number, arguments.steps)
        shadow_steps += result.shadow_steps
        for what, where in (("A/A", result.control), ("seeds", result.difference)):
            if where:
                print(f"trial {number} ({result.plan}): {what} differ at {where}", flush=True)
        control += bool(result.control)
        different += bool(result.difference)
    print(
        f"{arguments.trials} trials of {arguments.steps} steps, {shadow_steps} shadow steps beside "
        f"them: {different} hosts differ; of the A/A controls {control} differ "
        f"({time.perf_counter() - begun:.0f} s)"
    )
    return 1 if different or control else 0


if __name__ == "__main__":
    sys.exit(main())
