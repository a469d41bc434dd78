"""The module that stands in a host module's place while something has grown there.

A :class:`GraftPoint` wraps the module at a slot's end, and, where a seed reads a span, the
module at the span's start too. Without seeds and readers it is taken out again: a dormant slot
costs nothing.
"""

from __future__ import annotations

from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from esper.kasmina import ops, residual
from esper.kasmina.activation import activation, given, input_name, turned, with_activation
from esper.kasmina.errors import SEED_FAULTS, Faults, SlotError
from esper.kasmina.record import GrowthRecord, RecordError, as_tensor, decode_record, from_tensor
from esper.kasmina.signature import Slot


class SpanInput:
    """The input of a span's first module, kept from there to the span's end in one pass."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def take(self) -> Tensor:
        """The recorded input.

        Raises:
            SlotError: the span's end ran before its start.
        """
        if self.value is None:
            raise SlotError("a span's end was called before its start in this forward pass")
        return self.value

    def __getstate__(self) -> dict[str, None]:
        return {"value": None}


class _Gate(torch.autograd.Function):
    """``x`` itself; its gradient passes where ``open`` is 1, and is -0.0 where it is 0.

    Adding -0.0 changes no bit of any number, so that a closed gate is as good as ``detach`` to
    all that gets a gradient on another way too.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, open: Tensor) -> Tensor:
        ctx.save_for_backward(open)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (open,) = ctx.saved_tensors
        return torch.where(open > 0.0, gradients[0], -0.0), None


def gated(x: Tensor, open: Tensor) -> Tensor:
    """``x`` with a gate in the way of its gradient; ``open`` is ``[1]``, 0 or 1."""
    result: Tensor = _Gate.apply(x, open)  # type: ignore[no-untyped-call]
    return result


class GraftedSeed(nn.Module):
    """One seed in the host's forward path.

    The value is ``h + alpha * body(x)`` with ``x`` the slot's activation ``h`` itself or the
    input of the span; ``h`` bit for bit while alpha is 0. While ``isolated``, ``x`` is detached:
    the seed sends no gradient into the host through its input, and what its body raises is noted
    in ``faults``: the host then goes on with ``h``, as if the seed were not there.

    Compiled code asks two tensors whether it is isolated and how far it is blended, so that a host
    is compiled anew when a seed comes and not again when it becomes a fossil.

    Its record is part of the ``state_dict``, so that a grown state tells how it has grown.
    """

    alpha: Tensor
    open: Tensor

    def __init__(
        self,
        body: nn.Module,
        slot: Slot,
        record: GrowthRecord | None = None,
    ) -> None:
        super().__init__()
        self._record = None if record is None else record.encode()
        self.body = body
        self.faults = Faults()
        self.key = ""
        self.source = slot.source
        self.batch_axis = slot.batch_axis
        self.outputs = slot.outputs
        self.register_buffer("alpha", torch.zeros(1), persistent=False)
        self.register_buffer("open", torch.zeros(1), persistent=False)
        self._isolated = True

    def forward(self, h: Tensor, span_input: Tensor | None) -> Tensor:
        """Blend; ``h`` is ``[batch, *out_shape]``, ``span_input`` ``[batch, *in_shape]``, both as
        the host lays them out."""
        x = h if span_input is None else span_input
        if torch.compiler.is_dynamo_compiling():
            inner = turned(gated(x, self.open), self.batch_axis)
            delta = turned(self.body(inner), self.batch_axis).to(h.dtype)
            return ops.graft_blend(h, delta, self.alpha)
        if not self.isolated:
            return h + self._added(x, h)
        try:
            return self._blended(x.detach(), h)
        except SEED_FAULTS as error:
            # What traces or maps the host is told that it cannot; nothing else is a plain tensor.
            if ops.transforms_active() or type(h) is not Tensor:
                raise
            self.faults.note(error)
            return h

    def _blended(self, x: Tensor, h: Tensor) -> Tensor:
        grafted = residual.graft_body(h, x, self.body, self.alpha)
        return ops.graft_blend(h, self._added(x, h), self.alpha) if grafted is None else grafted

    def _added(self, x: Tensor, h: Tensor) -> Tensor:
        return turned(self.body(turned(x, self.batch_axis)), self.batch_axis).to(h.dtype)

    @property
    def isolated(self) -> bool:
        """Whether the seed sends no gradient into the host through its input."""
        return self._isolated

    @isolated.setter
    def isolated(self, value: bool) -> None:
        self._isolated = value
        self.open.fill_(0.0 if value else 1.0)

    @property
    def record(self) -> GrowthRecord | None:
        """Where and from what this seed was built; None where nobody said."""
        if self._record is None:
            return None
        return msgspec.structs.replace(decode_record(self._record), trial=self.isolated)

    def get_extra_state(self) -> Tensor:
        """The record as a tensor, for the ``state_dict``."""
        return as_tensor(self.record)

    def set_extra_state(self, state: object) -> None:
        """Check that a ``state_dict`` is that of the same growth.

        Raises:
            SlotError: it is not.
        """
        if self._record is None:
            return
        try:
            given = from_tensor(state)
        except RecordError as error:
            raise SlotError(
                f"the state of a grafted seed has no readable record: {error}"
            ) from None
        if not given.same_growth(decode_record(self._record)):
            raise SlotError(
                f"the state grew a seed in slot {given.slot!r} from another blueprint or place "
                "than this model did; load it into a fresh model with esper.load"
            )


def _seen(_: nn.Module, __: tuple[Any, ...]) -> None:
    """Does nothing: a TransformerEncoderLayer in evaluation calls children only if hooked."""


class GraftPoint(nn.Module):
    """A host module with what has grown on its output; attributes not found here are the host's."""

    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        self.host = host
        self.seeds = nn.ModuleDict()
        self.span_inputs: dict[str, SpanInput] = {}
        self.recorders: dict[str, SpanInput] = {}
        self.training = self.seeds.training = host.training
        self._input = input_name(host_of(host))
        self.register_forward_pre_hook(_seen)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):  # A protocol of the host's is none of the graft point's.
                raise
            return getattr(super().__getattr__("host"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The host module's output, its activation with every seed in it, oldest first."""
        for recorder in self.recorders.values():
            recorder.value = given(args, kwargs, self._input)
        # Past the search for attributes, which a graft point lengthens by those of its host.
        parts: dict[str, Any] = self._modules
        spans = self.span_inputs
        output = parts["host"](*args, **kwargs)
        h: Tensor = activation(output)
        for key, seed in parts["seeds"]._modules.items():
            h = seed(h, spans[key].take() if key in spans else None)
        for recorder in spans.values():
            recorder.value = None
        return with_activation(output, h)

    @property
    def outputs(self) -> int:
        """The length of the tuple that the host returns, 0 where it is none or nobody asked."""
        seeds = (seed for seed in self.seeds.values() if isinstance(seed, GraftedSeed))
        return max((seed.outputs for seed in seeds), default=0)

    @property
    def idle(self) -> bool:
        """Whether nothing grows here, so that the host module can stand alone again."""
        return not self.seeds and not self.recorders


def host_of(module: nn.Module) -> nn.Module:
    """The user's own module where ``module`` is a graft point, or one on another; else itself."""
    while isinstance(module, GraftPoint):
        module = module.host
    return module


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module at the dotted ``path``, which does not name the graft points on its way.

    Raises:
        SlotError: there is no module at ``path``.
    """
    return _holder(model, path)._modules[path.rpartition(".")[2]]  # type: ignore[return-value]


def _holder(model: nn.Module, path: str) -> nn.Module:
    """The module that has the last step of ``path`` as its own child."""
    parent = module = model
    for step in path.split("."):
        parent = module if step in module._modules else host_of(module)
        found = parent._modules.get(step)
        if found is None:
            raise SlotError(f"the host has no module at {path!r}")
        module = found
    return parent


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put ``module`` at the dotted ``path`` of ``model``."""
    _holder(model, path)._modules[path.rpartition(".")[2]] = module


def graft_point(model: nn.Module, path: str) -> GraftPoint:
    """The graft point at ``path``, made there when the host's own module still stands alone."""
    module = module_at(model, path)
    if isinstance(module, GraftPoint):
        return module
    point = GraftPoint(module)
    replace_module(model, path, point)
    return point


def attach(model: nn.Module, seed: GraftedSeed, key: str, start: str, end: str) -> None:
    """Put ``seed`` into the forward path of ``model`` under ``key``, at the slot's end."""
    seed.key = key
    point = graft_point(model, end)
    point.seeds[key] = seed
    if seed.source == "span":
        recorder = SpanInput()
        graft_point(model, start).recorders[key] = recorder
        point.span_inputs[key] = recorder


def detach(model: nn.Module, key: str, start: str, end: str) -> None:
    """Take the seed ``key`` out again; graft points that hold nothing more disappear."""
    point = graft_point(model, end)
    del point.seeds[key]
    if point.span_inputs.pop(key, None) is not None:
        del graft_point(model, start).recorders[key]
    for path in {start, end}:
        module = module_at(model, path)
        if isinstance(module, GraftPoint) and module.idle:
            replace_module(model, path, module.host)
