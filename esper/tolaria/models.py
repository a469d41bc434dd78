"""Hosts that a config can name: plain modules that know nothing of Esper."""

from __future__ import annotations

import importlib
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from esper.tolaria.config import (
    CnnSettings,
    Config,
    FactorySettings,
    TransformerSettings,
)
from esper.tolaria.data import Splits
from esper.tolaria.strict import ConfigError, clean, shown
from esper.tolaria.transformer import Transformer

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


def cnn(
    channels: int,
    side: int,
    stages: Sequence[int],
    hidden: Sequence[int],
    classes: int,
    *,
    kernel: int = 3,
    activation: str = "relu",
    pooling: str = "max",
    batchnorm: bool = False,
) -> nn.Sequential:
    """A convolutional network, float32 [batch, ``channels``, ``side``, ``side``] to logits.

    Each stage is ``conv``, ``norm`` (where asked for), ``act`` and ``pool`` of its number, which
    halves the side (rounding down); ``flatten`` and an :func:`mlp` end it. Initialised as torch
    does, from torch's global generator.

    Raises:
        ConfigError: there are more stages than ``side`` can be halved.
    """
    left = side >> len(stages)
    if left == 0:
        raise ConfigError(
            f"model.channels: got {len(stages)} stages, wanted at most {int(math.log2(side))} "
            f"for images of {side} x {side}, which each stage halves"
        )
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    width = channels
    for number, units in enumerate(stages, start=1):
        modules[f"conv{number}"] = nn.Conv2d(width, units, kernel, padding=kernel // 2)
        if batchnorm:
            modules[f"norm{number}"] = nn.BatchNorm2d(units)
        modules[f"act{number}"] = ACTIVATIONS[activation]()
        modules[f"pool{number}"] = nn.MaxPool2d(2) if pooling == "max" else nn.AvgPool2d(2)
        width = units
    modules["flatten"] = nn.Flatten()
    modules["mlp"] = mlp(
        width * left * left, hidden, classes, activation=activation, batchnorm=batchnorm
    )
    return nn.Sequential(modules)


def create(config: Config, splits: Splits) -> nn.Module:
    """The host of a config for the examples and classes of its data.

    Initialised from torch's global generator, which the caller has seeded. Raises ``ConfigError``
    when the model does not fit the data, or a factory of the user's cannot be imported, fails, or
    returns no fitting module.
    """
    settings, x = config.model, splits.train.x
    match settings:
        case FactorySettings():
            model = _from_factory(settings.factory, settings.arguments, config.directory)
            _check_interface(model, splits)
            return model
        case CnnSettings():
            return cnn(
                x.shape[1],
                x.shape[2],
                settings.channels,
                settings.hidden,
                splits.classes,
                kernel=settings.kernel,
                activation=settings.activation,
                pooling=settings.pooling,
                batchnorm=settings.batchnorm,
            )
        case TransformerSettings():
            return Transformer(
                x.shape[1],
                splits.classes,
                width=settings.width,
                heads=settings.heads,
                layers=settings.layers,
                hidden=settings.hidden,
                activation=ACTIVATIONS[settings.activation],
                dropout=settings.dropout,
            )
    flat = mlp(
        splits.features,
        settings.hidden,
        splits.classes,
        activation=settings.activation,
        dropout=settings.dropout,
        batchnorm=settings.batchnorm,
    )
    return flat if x.dim() == 2 else nn.Sequential(OrderedDict(flatten=nn.Flatten(), mlp=flat))


def _from_factory(factory: str, arguments: Mapping[str, Any], directory: Path) -> nn.Module:
    module_name, _, name = factory.partition(":")
    with _searched_first(directory):
        try:
            module = importlib.import_module(module_name)
        # Whatever the user's own code raises is theirs to read, on one line.
        except Exception as error:
            raise ConfigError(
                f"model.factory: importing {module_name!r} failed ({_told(error)})"
            ) from error
    function: Callable[..., object] | None = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"model.factory: {module_name!r} has no function {name!r}")
    try:
        model = function(**arguments)
    except Exception as error:
        raise ConfigError(f"model.factory: {factory} failed ({_told(error)})") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model.factory: {factory} returned {type(model).__name__}, wanted a torch.nn.Module"
        )
    return model


def _check_interface(model: nn.Module, splits: Splits) -> None:
    """A module that cannot be trained on the data is refused before the first step."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            "model.factory: the model has no parameters to train, wanted at least one"
        )
    x, y = splits.train.x[:2], splits.train.y[:2]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            result = model(x)
    except Exception as error:
        raise ConfigError(
            f"model.factory: the model fails on a batch of shape {list(x.shape)} ({_told(error)})"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    shape = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
    wanted = (*y.shape, splits.classes)
    if shape != wanted:
        raise ConfigError(
            f"model.factory: the model maps {list(x.shape)} to {shown(shape)}, "
            f"wanted logits of shape {wanted}"
        )


@contextmanager
def _searched_first(directory: Path) -> Iterator[None]:
    """Import the user's modules from beside their config, wherever the command was typed."""
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))


def _told(error: BaseException) -> str:
    text = " ".join(clean(line) for line in str(error).splitlines() if line.strip())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
