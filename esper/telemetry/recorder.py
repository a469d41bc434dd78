"""Five figures of what each layer reads and of its gradient, at every step, in a ring.

The hooks stay in the host while this is wanted. They only remember tensors: one call of one
operator writes the figures of all layers into a table on their device, just before the optimizer
steps, because on small layers a call costs more than the work. The table holds some steps and is
copied when it is full; the copy goes into the ring when it has arrived, so no step waits for the
device.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from esper.kasmina import ops
from esper.kasmina._lattice import TelemetryRing
from esper.kasmina.activation import activation
from esper.kasmina.carriers import BLENDABLE
from esper.telemetry.errors import TelemetryError
from esper.telemetry.layers import Layer

_logger = logging.getLogger("esper.telemetry")

FIGURES = ("mean", "variance", "largest", "zeros", "not_finite")
"""Mean, population variance and largest magnitude of the finite elements, fraction of all that is
zero, number that is not finite: over a whole tensor of at most 16,384 elements, over as many of a
larger one."""

Side = Literal["input", "gradient"]
Figure = Literal["mean", "variance", "largest", "zeros", "not_finite"]
Steps = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

HELD_BYTES = 64 * 1024 * 1024
"""Inputs are kept until the optimizer steps, but never more than this."""

_SIDES: tuple[Side, Side] = ("input", "gradient")
_STAGED = 32


@dataclass
class _Block:
    """Rows of some steps on their way to the ring; ``arrived`` is None on the CPU."""

    steps: list[int]
    rows: Tensor
    arrived: torch.cuda.Event | None


class StepRecorder:
    """Records the layers of one host while ``open``; ``capacity`` steps are kept.

    A record holds what each layer read in the last pass that took gradients, and the gradient of
    its first parameter (the weight of a layer that has one) as the optimizer is given it.
    ``staged`` steps go into the ring together.

    Raises:
        TelemetryError: the layers stand on several devices.
    """

    def __init__(self, layers: Sequence[Layer], capacity: int, staged: int = _STAGED) -> None:
        devices = {p.device for layer in layers for p in layer.module.parameters()}
        if len(devices) > 1:
            names = ", ".join(sorted(map(str, devices)))
            raise TelemetryError(f"got layers on {names}, wanted all of them on one device")
        device = devices.pop() if devices else torch.device("cpu")
        self.names = tuple(layer.name for layer in layers)
        self.open = False
        self._rows = len(self.names) * len(_SIDES)
        self.ring = TelemetryRing(capacity, self._rows * len(FIGURES))
        self._staged = staged
        shape = (self._staged * self._rows, len(FIGURES))
        self._table = torch.full(shape, torch.nan, dtype=torch.float64, device=device)
        self._modules: list[nn.Module] = []
        self._parameters: list[nn.Parameter | None] = []
        self._handles: list[RemovableHandle] = []
        self._held: list[Tensor] = []
        self._held_rows: list[int] = []
        self._held_bytes = 0
        self._inputs_seen = self._warned = False
        self._base = 0
        self._steps: list[int] = []
        self._waiting: deque[_Block] = deque()

    def attach(self, layers: Sequence[Layer], optimizer: torch.optim.Optimizer) -> None:
        """Put hooks into these layers, whose names are those of the first ones, and on
        ``optimizer``; does nothing where they are already."""
        modules = [layer.module for layer in layers]
        parameters = [next(iter(module.parameters()), None) for module in modules]
        if _same(modules, self._modules) and _same(parameters, self._parameters):
            return
        self.detach()
        self._modules, self._parameters = modules, parameters
        self._handles = [
            module.register_forward_hook(_InputHook(self, module, row))
            for row, module in enumerate(modules)
        ]
        self._handles.append(optimizer.register_step_pre_hook(self._before_update))

    def detach(self) -> None:
        """Take all hooks out; what has been recorded stays."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._modules, self._parameters = [], [], []
        self._drop()

    def commit(self, step: int) -> None:
        """End a step: what was seen since the last one is its record. Steps must rise."""
        if self._held:
            self._write()
        self._warn_once(step)
        self._steps.append(step)
        self._base += self._rows
        if len(self._steps) == self._staged:
            self._send()

    def history(self) -> tuple[Steps, Values]:
        """Steps ``[n]`` and their figures ``[n, layers, 2, 5]``, oldest first: the sides are input
        and gradient, the figures those of ``FIGURES``. Not a number where nothing was seen.

        Waits for the device.
        """
        if self._steps:
            self._send()
        self._fetch(wait=True)
        shape = (len(self.ring), len(_SIDES), len(self.names), len(FIGURES))
        records = np.frombuffer(self.ring.records()).reshape(shape)
        return np.array(self.ring.steps(), dtype=np.int64), records.swapaxes(1, 2)

    def series(self, layer: str, side: Side, figure: Figure) -> tuple[Steps, Values]:
        """Steps ``[n]`` and one figure of one layer ``[n]``, oldest first; waits for the device.

        Raises:
            TelemetryError: there is no such layer, side or figure.
        """
        place = _position("layer", layer, self.names)
        where = _position("side", side, _SIDES), _position("figure", figure, FIGURES)
        steps, records = self.history()
        return steps, records[:, place, where[0], where[1]]

    def _warn_once(self, step: int) -> None:
        if not self._inputs_seen and not self._warned:
            self._warned = True
            _logger.warning(
                "at step %d no layer was seen to run: compiled code sees no hooks, and passes "
                "without gradients are not recorded; set sample_every for a compiled model",
                step,
            )

    def hold(self, x: Any, row: int) -> None:
        """Remember what the layer of ``row`` has read."""
        if not isinstance(x, Tensor) or x.dtype not in BLENDABLE:
            return
        self._inputs_seen = True
        row += self._base
        if row in self._held_rows:
            # Another micro-batch, or a checkpoint's second pass: the last one counts.
            self._held[self._held_rows.index(row)] = x
            return
        self._held.append(x)
        self._held_rows.append(row)
        self._held_bytes += x.nbytes
        if self._held_bytes > HELD_BYTES:
            self._write()

    def _before_update(self, *_: object) -> None:
        if self.open:
            first = self._base + len(self.names)
            for row, parameter in enumerate(self._parameters, start=first):
                gradient = None if parameter is None else parameter.grad
                if gradient is not None and gradient.dtype in BLENDABLE and not gradient.is_sparse:
                    self._held.append(gradient)
                    self._held_rows.append(row)
            self._write()

    def _write(self) -> None:
        ops.record_stats(self._held, self._table, self._held_rows)
        self._drop()

    def _drop(self) -> None:
        self._held.clear()
        self._held_rows.clear()
        self._held_bytes = 0

    def _send(self) -> None:
        """Let the table's rows travel, and begin new ones."""
        rows, arrived = self._table, None
        if rows.is_cuda:
            rows = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            rows.copy_(self._table, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        else:
            rows = rows.to("cpu", copy=True)
        self._waiting.append(_Block(self._steps, rows, arrived))
        self._steps, self._base = [], 0
        self._table.fill_(torch.nan)
        self._fetch(wait=False)

    def _fetch(self, *, wait: bool) -> None:
        while self._waiting:
            block = self._waiting[0]
            if block.arrived is not None and not block.arrived.query():  # type: ignore[no-untyped-call]
                if not wait:
                    return
                block.arrived.synchronize()
            rows = block.rows.numpy().reshape(self._staged, -1)
            for step, record in zip(block.steps, rows, strict=False):
                self.ring.push(step, record)
            self._waiting.popleft()


class _InputHook:
    """Shows the recorder what one module reads. Copies and pickles of the host do not show it."""

    def __init__(self, recorder: StepRecorder, module: nn.Module, row: int) -> None:
        self._recorder = recorder
        self._module = module
        self._row = row

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling() or not self._recorder.open or module is not self._module:
            return
        if args and activation(output).requires_grad:
            self._recorder.hold(args[0], self._row)

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _no_hook, ()


def _no_hook() -> Callable[..., None]:
    return _unseen


def _unseen(*_: object) -> None:
    """The hook of a host that nobody records."""


def _same(ones: Sequence[object], others: Sequence[object]) -> bool:
    return len(ones) == len(others) and all(a is b for a, b in zip(ones, others, strict=True))


def _position(what: str, wanted: str, known: Sequence[str]) -> int:
    if wanted not in known:
        raise TelemetryError(f"got {what} {wanted!r}, wanted one of {', '.join(known)}")
    return list(known).index(wanted)
