"""Small hosts of several kinds, and everything that must not move in them."""

from __future__ import annotations

import hashlib
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from esper.kasmina.digest import tensor_bytes
from esper.kasmina.seed import Seed
from esper.kasmina.signature import Slot

Bits = dict[str, str]
Loss = Callable[[Any], Tensor]


def mlp() -> nn.Module:
    """``[batch, 6]`` to 3 logits, with BatchNorm and dropout."""
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
    )


def cnn() -> nn.Module:
    """``[batch, 1, 6, 6]`` to 3 logits."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 3),
    )


class Tokens(nn.Module):
    """``[batch, 5]`` token numbers to 3 logits over ``[batch, 5, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.embed(x))
        h = h + self.attention(h, h, h, need_weights=False)[0]
        logits: Tensor = self.head(torch.relu(self.mix(h)).mean(dim=1))
        return logits


class Checkpointed(nn.Module):
    """``[batch, 4]`` to the same through two blocks that run again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.b = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.saving = True

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.a, self.b):
            x = checkpoint(block, x, use_reentrant=False) if self.saving else block(x)
        return x


HOSTS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": lambda: (mlp(), torch.randn(8, 6)),
    "cnn": lambda: (cnn(), torch.randn(8, 1, 6, 6)),
    "tokens": lambda: (Tokens(), torch.randint(11, (8, 5))),
}


def classify(model: nn.Module) -> Loss:
    """Cross-entropy of a batch of inputs and classes."""

    def loss_fn(batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(model(x), y)

    return loss_fn


def noise_body(slot: Slot) -> nn.Module:
    """A linear body for slots whose features come last; its output is not zero."""
    return nn.Linear(slot.in_shape[-1], slot.out_shape[-1], dtype=slot.dtype)


def sgd_seed(slot: Slot, body: nn.Module | None = None, number: int = 0) -> Seed:
    """A seed in ``slot`` that learns by SGD."""
    body = noise_body(slot) if body is None else body
    return Seed(number, slot, "test", body, torch.optim.SGD(body.parameters(), lr=0.1))


def bits(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Bits:
    """A digest of everything that a seed could touch, by name."""
    raw: dict[str, bytes] = {}
    for name, parameter in model.named_parameters():
        raw[f"learns {name}"] = repr(parameter.requires_grad).encode()
        gradient = parameter.grad
        raw[f"grad {name}"] = b"" if gradient is None else tensor_bytes(gradient)
    raw.update((name, tensor_bytes(value)) for name, value in model.state_dict().items())
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if not k.startswith("_")}
        tensors = {k: tensor_bytes(v) for k, v in plain.items() if isinstance(v, Tensor)}
        raw[f"attributes {name}"] = repr({**plain, **tensors}).encode()
    for index, state in enumerate(optimizer.state.values() if optimizer else ()):
        for name, value in state.items():
            raw[f"moment {index} {name}"] = (
                tensor_bytes(value) if isinstance(value, Tensor) else repr(value).encode()
            )
    raw["torch"] = tensor_bytes(torch.default_generator.get_state())
    raw["python"] = pickle.dumps(random.getstate())
    raw["numpy"] = pickle.dumps(np.random.get_state())
    return {name: hashlib.sha256(value).hexdigest() for name, value in raw.items()}


def differing(before: Bits, after: Bits) -> list[str]:
    """The names whose bits differ, or that only one of the two has."""
    return sorted(name for name in before | after if before.get(name) != after.get(name))
