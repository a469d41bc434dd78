"""Ways to train one and the same small host: each is a loop that growth must fit into."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from esper.kasmina.host_update import Stateful
from esper.tamiyo.interface import Controller
from esper.tolaria.growth import Growth
from support.growth_runs import FAST, Batch, Loop, bits

SLOT = ("layer1..head", "widen")
STEPS = 70


class Way(Loop):
    """A plain loop with dropout and BatchNorm; subclasses do one thing in another way."""

    slot = SLOT

    def __init__(self) -> None:
        super().__init__(dropout=0.2, batchnorm=True)
        self.call: Callable[[Tensor], Tensor] = self.model
        self.stateful: list[Stateful] = []
        self.prepare()

    def prepare(self) -> None:
        """Make what this way needs besides model and optimizer."""

    def loss_fn(self, batch: Batch) -> Tensor:
        """Mean squared error in float32."""
        x, y = batch
        return functional.mse_loss(self.call(x).float(), y)

    def update(self, loss: Tensor) -> None:
        """What the loop does with a loss."""
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def train(self, batch: Any) -> Tensor:
        """One step on ``batch``."""
        loss = self.loss_fn(batch)
        self.update(loss)
        return loss.detach()

    def next_batch(self) -> Any:
        """What one step trains on."""
        return self.batches[self.steps % len(self.batches)]

    def run(self, steps: int, **_: Any) -> None:
        """Train, and tell growth of each step."""
        for _ in range(steps):
            batch = self.next_batch()
            self.steps += 1
            loss = self.train(batch)
            if self.growth is not None:
                self.growth.step(batch, loss)

    def given(self) -> dict[str, Any]:
        """What growth is told of this way."""
        return {"update": self.update, "update_state": self.stateful}

    def through(self, controller: Controller, steps: int = STEPS) -> Growth:
        """A whole run with growth, closed."""
        growth = self.grow(FAST, controller, **self.given())
        self.run(steps)
        growth.close()
        return growth

    def everything(self) -> tuple[list[Tensor], list[Any]]:
        """All that training may change, for a comparison bit by bit."""
        return bits(self), [held.state_dict() for held in self.stateful]


class Chain(nn.Sequential):
    """A sequence with a forward of its own: torch compiles no code of torch.nn in place."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x)
        return x


class Compiled(Way):
    """The loop calls a compiled model; growth is given the user's own."""

    def prepare(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []
        torch.compiler.reset()
        self.model = Chain(OrderedDict(self.model.named_children()))
        self.attach()

    def backend(self, graph: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        """Runs the captured graph as it is, and remembers it."""
        self.graphs.append(graph)
        return graph.forward

    def attach(self) -> None:
        """Compile the host."""
        self.call = torch.compile(self.model, backend=self.backend)  # type: ignore[assignment]


class CompiledInPlace(Compiled):
    """``model.compile()``: the host itself runs compiled."""

    def attach(self) -> None:
        self.model.compile(backend=self.backend)
        self.call = self.model


class CompiledByLayer(Compiled):
    """Two regions are compiled, each on its own."""

    def attach(self) -> None:
        first, second = self.model[:4], self.model[4:]
        for region in (first, second):
            region.compile(backend=self.backend)
        self.call = self.model = Chain(first, second)

    slot = ("1.head", "bottleneck_mlp")


class CompiledHandedOver(Compiled):
    """Growth is given the compiled model in place of the user's own."""

    def attach(self) -> None:
        super().attach()
        self.model = self.call  # type: ignore[assignment]


class Autocast(Way):
    """Activations in bfloat16, parameters in float32."""

    def loss_fn(self, batch: Batch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().loss_fn(batch)


class Checkpointed(Way):
    """Every forward pass runs again in the backward pass."""

    def prepare(self) -> None:
        self.call = lambda x: checkpoint(self.model, x, use_reentrant=False)


class Accumulated(Way):
    """Three backward passes for each optimizer step, the last of an epoch's has two."""

    def next_batch(self) -> list[Batch]:
        start = 3 * self.steps
        count = 2 if self.steps % 5 == 4 else 3
        return [self.batches[i % len(self.batches)] for i in range(start, start + count)]

    def train(self, batch: list[Batch]) -> Tensor:
        seen: list[Tensor] = []

        def losses() -> Iterator[Tensor]:
            for part in batch:
                seen.append(self.loss_fn(part))
                yield seen[-1]

        self.accumulate(losses())
        return torch.stack(seen).mean().detach()

    def accumulate(self, losses: Iterator[Tensor]) -> None:
        """Gradients of one micro-batch after another, then a step."""
        for loss in losses:
            (loss / 3).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def given(self) -> dict[str, Any]:
        return {"update": self.accumulate, "accumulate": True}


class Scaled(Way):
    """A gradient scaler with clipping; its first scale overflows, so that steps are left out."""

    def prepare(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=5)
        self.stateful = [self.scaler]

    def update(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()


class Functional(Way):
    """The model is called through ``torch.func.functional_call``."""

    def prepare(self) -> None:
        self.call = lambda x: torch.func.functional_call(
            self.model, dict(self.model.named_parameters()), (x,)
        )


class InEvaluation(Way):
    """A host that is trained in evaluation mode: frozen statistics, no dropout."""

    def prepare(self) -> None:
        self.model.eval()


class InParallel(Way):
    """``nn.DataParallel``, which on a machine without GPUs runs the model itself."""

    def prepare(self) -> None:
        self.call = nn.DataParallel(self.model)


WAYS: dict[str, type[Way]] = {
    "plain": Way,
    "compiled": Compiled,
    "compiled in place": CompiledInPlace,
    "compiled by layer": CompiledByLayer,
    "compiled, handed over": CompiledHandedOver,
    "autocast": Autocast,
    "checkpointed": Checkpointed,
    "accumulated": Accumulated,
    "scaled": Scaled,
    "functional": Functional,
    "in evaluation": InEvaluation,
    "in parallel": InParallel,
}
