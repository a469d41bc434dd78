"""The fork gate's evidence: the grown host against itself without the seed, on equal batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from esper.kasmina.branch import Branch, hyperparameters_of
from esper.kasmina.host_update import HostUpdate
from esper.kasmina.random_state import RandomState
from esper.kasmina.shadow import LossFunction, held_out_losses
from esper.telemetry.drift import activations, cosines
from esper.telemetry.layers import Layer
from esper.tolaria.explosion import exploded
from esper.tolaria.statistics import PairedGain, paired_gain

_LOOKED_AT = 64
"""Nodes of a graph; the last ones of a loss always save something."""


class ForkTrial:
    """A branch of host and optimizer that trains beside the grown host until the gate decides.

    A second one stays as it was taken: the snapshot to go back to where both are spoilt.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: LossFunction,
        update: HostUpdate,
    ) -> None:
        """Take the fork now, before anything of the seed is in the host."""
        self._model = model
        self._optimizer = optimizer
        self._loss_fn = loss_fn
        self._branch = Branch(model, optimizer, update)
        self._start = Branch(model, optimizer, update)
        self._used = [hyperparameters_of(group) for group in optimizer.param_groups]
        self._inside = False
        self._hook = optimizer.register_step_post_hook(self._remember_hyperparameters)
        self._random_state = RandomState()
        self._measured: list[tuple[list[float], list[float]]] = []

    @property
    def measured(self) -> bool:
        """Whether there is anything to judge by."""
        return bool(self._measured)

    @property
    def steps(self) -> int:
        """Steps that the fork has trained: what the comparison has cost, and the snapshot's age."""
        return self._branch.steps

    @property
    def finite(self) -> bool:
        """Whether the fork's weights and optimizer state hold numbers alone."""
        return self._branch.finite

    def spoilt(self, batches: Sequence[Any], explosion: float) -> bool:
        """Whether nobody can go on with the fork: it holds what is no number, or its mean loss on
        ``batches`` has exploded since it was taken."""
        if not self.finite:
            return True
        before, now = (self._loss_of(branch, batches) for branch in (self._start, self._branch))
        return math.isfinite(before) and exploded(now, before, explosion)

    def _loss_of(self, branch: Branch, batches: Sequence[Any]) -> float:
        with branch.entered():
            losses = held_out_losses(self._model, self._loss_fn, batches)
        return sum(losses) / len(losses)

    def follow(self, batch: Any) -> float:
        """Train the fork on the batch that the live host has just been trained on."""
        self._inside = True
        try:
            return self._branch.step(self._loss_fn, batch, self._random_state, self._used)
        finally:
            self._inside = False

    def mark(self) -> None:
        """Remember the random state that the next live step starts from."""
        self._random_state = RandomState()

    def measure(self, batches: Sequence[Any]) -> None:
        """Measure both on the confirmation batches once more."""
        grown = held_out_losses(self._model, self._loss_fn, batches)
        with self._branch.entered():
            forked = held_out_losses(self._model, self._loss_fn, batches)
        self._measured.append((forked, grown))

    def drift(self, layers: Sequence[Layer], batch: Any) -> float:
        """How far the seed has turned the activations of ``layers``: the largest of 1 - cosine
        between the host without it and with it, after equal training. Not a number where no layer
        can be compared."""
        with self._branch.entered():
            without = activations(self._model, layers, lambda: self._loss_fn(batch))
        grown = activations(self._model, layers, lambda: self._loss_fn(batch))
        found = list(cosines(without, grown).values())
        return 1.0 - min(found) if found and all(map(math.isfinite, found)) else math.nan

    def gain(self) -> PairedGain:
        """The grown host's gain over the fork, averaged over all measurements.

        Two trainings from one start drift apart by chance; how far the gain wanders from one
        measurement to the next is added to the error, in squares.
        """
        if not self._measured:
            return PairedGain(-math.inf, math.inf, 0)
        forked = _means([forked for forked, _ in self._measured])
        grown = _means([grown for _, grown in self._measured])
        gain = paired_gain(forked, grown)
        drift = _spread([paired_gain(*pair).relative for pair in self._measured])
        return PairedGain(gain.relative, math.hypot(gain.error, drift), gain.batches)

    def adopt(self) -> None:
        """Let the fork go on in the grown host's place."""
        self._hook.remove()
        self._branch.adopt()

    def restore(self) -> None:
        """Let the host go on from where the fork was taken."""
        self._hook.remove()
        self._start.adopt()

    def discard(self) -> None:
        """End the fork; the grown host goes on."""
        self._hook.remove()

    def _remember_hyperparameters(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if not self._inside:
            self._used = [hyperparameters_of(group) for group in optimizer.param_groups]


def awaits_backward(loss: Tensor) -> bool:
    """Whether a backward pass through the graph of ``loss`` is still to come.

    The tensors that a graph has saved are gone after it. Of a graph that saves none nothing is
    known, and the answer is no.
    """
    waiting = [loss.grad_fn]
    for node in waiting:
        for name in dir(node):
            if name.startswith("_saved_"):
                try:
                    saved = getattr(node, name)
                except RuntimeError:
                    return False
                if isinstance(saved, Tensor):
                    return True
        if node is not None and len(waiting) < _LOOKED_AT:
            waiting += [before for before, _ in node.next_functions]
    return False


def _means(measurements: Sequence[list[float]]) -> list[float]:
    """The mean of every batch's losses over all measurements."""
    return [sum(losses) / len(losses) for losses in zip(*measurements, strict=True)]


def _spread(values: Sequence[float]) -> float:
    """The sample standard deviation; 0 for fewer than two values."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
