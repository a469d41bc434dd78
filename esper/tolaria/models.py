"""Hosts that a config can name: plain modules that know nothing of Esper."""

from __future__ import annotations

import importlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from esper.tolaria.config import Config, FactorySettings
from esper.tolaria.strict import ConfigError, clean, shown

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


def create(config: Config, features: int, classes: int) -> nn.Module:
    """The host of a config for examples of ``features`` numbers and ``classes`` classes.

    Initialised from torch's global generator, which the caller has seeded. Raises ``ConfigError``
    when a factory of the user's cannot be imported, fails, or returns no fitting module.
    """
    settings = config.model
    if isinstance(settings, FactorySettings):
        model = _from_factory(settings.factory, settings.arguments, config.directory)
        _check_interface(model, features, classes)
        return model
    return mlp(
        features,
        settings.hidden,
        classes,
        activation=settings.activation,
        dropout=settings.dropout,
        batchnorm=settings.batchnorm,
    )


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


def _check_interface(model: nn.Module, features: int, classes: int) -> None:
    """A module that cannot be trained on the data is refused before the first step."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            "model.factory: the model has no parameters to train, wanted at least one"
        )
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            result = model(torch.zeros(2, features))
    except Exception as error:
        raise ConfigError(
            f"model.factory: the model fails on a batch of shape [2, {features}] ({_told(error)})"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    shape = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
    if shape != (2, classes):
        raise ConfigError(
            f"model.factory: the model maps [2, {features}] to {shown(shape)}, "
            f"wanted logits of shape (2, {classes})"
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
