"""Hosts that a config can name: plain modules that know nothing of Esper."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def mlp(
    features: int,
    hidden: Sequence[int],
    classes: int,
    *,
    activation: str = "relu",
    dropout: float = 0.0,
    batchnorm: bool = False,
) -> nn.Sequential:
    """A multilayer perceptron, float32 [batch, ``features``] to logits [batch, ``classes``].

    Its layers are named ``layer1``, ``layer2``, ... and ``head``; each hidden one is followed by
    ``norm``, ``act`` and ``drop`` of its number where asked for. Initialised as torch does, from
    torch's global generator.
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    width = features
    for number, units in enumerate(hidden, start=1):
        modules[f"layer{number}"] = nn.Linear(width, units)
        if batchnorm:
            modules[f"norm{number}"] = nn.BatchNorm1d(units)
        modules[f"act{number}"] = ACTIVATIONS[activation]()
        if dropout > 0.0:
            modules[f"drop{number}"] = nn.Dropout(dropout)
        width = units
    modules["head"] = nn.Linear(width, classes)
    return nn.Sequential(modules)
