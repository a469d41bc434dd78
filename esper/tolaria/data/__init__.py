"""The data sets that Esper can train on, split once and for all.

Four parts, so that no gate is judged on examples that chose its candidate: the host learns from
``train``; plateau detection, tournament and shadow gate look at ``probe``; the fork gate alone
sees ``confirm``; ``test`` is only reported. The split depends on nothing but the data set.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from esper.tolaria.config import DataSettings
from esper.tolaria.data.characters import characters
from esper.tolaria.data.fashion import fashion_mnist
from esper.tolaria.data.parts import Part, Splits
from esper.tolaria.data.small import digits, mnist1d, mnist1d_shuffled

__all__ = ["NAMES", "Part", "Splits", "load"]

_LOADERS: dict[str, Callable[[DataSettings, Path], Splits]] = {
    "digits": lambda _, __: digits(),
    "mnist1d": lambda _, __: mnist1d(),
    "mnist1d_shuffled": lambda _, __: mnist1d_shuffled(),
    "fashion_mnist": lambda chosen, directory: fashion_mnist(
        None if chosen.path is None else directory / chosen.path, chosen.examples
    ),
    "characters": lambda chosen, _: characters(chosen.window),
}
NAMES: tuple[str, ...] = tuple(_LOADERS)


def load(chosen: DataSettings, directory: Path | None = None) -> Splits:
    """The data set of a config; leaves all random state as it was.

    ``directory`` is where a relative ``path`` of the config begins (the current one by default).

    Raises:
        ConfigError: the data set's files are missing or damaged.
    """
    splits = _LOADERS[chosen.name](chosen, directory or Path())
    return splits if chosen.examples is None else splits.shortened(chosen.examples)
