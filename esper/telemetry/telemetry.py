"""Telemetry of a host in training: scalars at every step, second moments at an interval."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from esper.kasmina.shadow import LossFunction
from esper.kasmina.signature import Slot
from esper.telemetry.errors import TelemetryError
from esper.telemetry.layers import layers_of
from esper.telemetry.meter import LayerFigures, LayerMeter
from esper.telemetry.passes import measure
from esper.telemetry.recorder import StepRecorder

CAPACITY = 1000
"""Steps that the ring keeps."""

_MEMORY = 0.9
_REFRESH = 100


class Telemetry:
    """What happens in the layers of ``model`` while it trains.

    ``every_step`` keeps five figures of each layer's input and gradient for the last ``CAPACITY``
    steps (:attr:`steps`), by hooks that stay. ``sample_every`` measures all layers as
    ``esper.inspect`` does, in a pass of its own over the batch of every so many steps (0: never);
    second moments fade by a tenth from one such pass to the next, so that :meth:`layers` is of the
    weights as they are. Neither changes a bit of the host, and neither waits for the device.

    Raises:
        TelemetryError: ``every_step`` of a compiled host: compiled code sees no hooks.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: LossFunction,
        slots: Iterable[Slot],
        *,
        every_step: bool = False,
        sample_every: int = 0,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._loss_fn = loss_fn
        self._slots = list(slots)
        self._sample_every = sample_every
        layers = layers_of(model, self._slots)
        self._meters: list[LayerMeter] = []
        self.steps: StepRecorder | None = None
        """The figures of every step; None unless they were asked for."""
        if every_step:
            _refuse_compiled(model)
            self.steps = StepRecorder(layers, CAPACITY)
            self.steps.attach(layers, optimizer)
            self.steps.open = True

    def end_step(self, step: int, batch: Any) -> None:
        """After the optimizer step ``step``, which trained on ``batch``. Passes until
        :meth:`begin_step` are nobody's step."""
        if self.steps is not None:
            self.steps.open = False
            self.steps.commit(step)
            if step % _REFRESH == 0:
                # What has grown may have put other modules in the places of some.
                self.steps.attach(layers_of(self._model, self._slots), self._optimizer)
        if self._sample_every and step % self._sample_every == 0:
            self._sample(batch)

    def begin_step(self) -> None:
        """Before the passes of the next step."""
        if self.steps is not None:
            self.steps.open = True

    def layers(self) -> tuple[LayerFigures, ...]:
        """Every layer as the sampled passes saw it; waits for the device.

        Raises:
            TelemetryError: nothing has been sampled.
        """
        if not self._meters:
            wanted = "set sample_every" if not self._sample_every else "wait for the first sample"
            raise TelemetryError(f"no pass has been sampled yet: {wanted}")
        return tuple(meter.figures() for meter in self._meters)

    def close(self) -> None:
        """Take every hook out of the host; what has been recorded stays."""
        if self.steps is not None:
            self.steps.detach()

    def _sample(self, batch: Any) -> None:
        layers = layers_of(self._model, self._slots)
        if [layer.module for layer in layers] != [meter.layer.module for meter in self._meters]:
            self._meters = [LayerMeter(layer, memory=_MEMORY, keep=1) for layer in layers]
        measure(self._model, self._meters, self._loss_fn, batch)


def _refuse_compiled(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise TelemetryError(
                f"{name or 'the model'} is compiled, and compiled code sees no hooks: leave "
                "step_statistics off and set sample_every, which runs the model uncompiled"
            )
