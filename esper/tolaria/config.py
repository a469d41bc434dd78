"""The config of ``esper train``: a TOML file, strictly checked, as frozen structs.

Reading needs no torch, so that a mistake is told before anything slow is loaded.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from esper.blueprints.library import LIBRARY
from esper.tolaria.sections import (
    CnnSettings,
    Config,
    DataSettings,
    FactorySettings,
    LogSettings,
    MlpSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
    ScheduleSettings,
    Seed,
    TransformerSettings,
)
from esper.tolaria.settings import GrowthSettings
from esper.tolaria.strict import (
    ConfigError,
    clean,
    refuse_unknown,
    shown,
    struct_from,
    suggestion,
    value_from,
)

__all__ = [
    "CnnSettings",
    "Config",
    "ConfigError",
    "DataSettings",
    "FactorySettings",
    "LogSettings",
    "MlpSettings",
    "ModelSettings",
    "OptimizerSettings",
    "RunSettings",
    "ScheduleSettings",
    "TransformerSettings",
    "parse",
    "read",
]

MAX_BYTES = 1024 * 1024

_SECTIONS = ("run", "data", "model", "optimizer", "schedule", "growth", "log")
_Kind = Literal["mlp", "cnn", "transformer"]
_KINDS: dict[str, type[MlpSettings | CnnSettings | TransformerSettings]] = {
    "mlp": MlpSettings,
    "cnn": CnnSettings,
    "transformer": TransformerSettings,
}
_MODELS_FOR = {"fashion_mnist": ("mlp", "cnn"), "characters": ("transformer",)}
"""Kinds of models that can learn from a data set; an MLP from every other one."""


def read(path: Path) -> Config:
    """The config in a file; raises ``ConfigError``, whose line begins with the path."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: got more bytes than {MAX_BYTES}, wanted at most that")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    try:
        return parse(text, path.resolve().parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse(text: str, directory: Path) -> Config:
    """The config in a TOML text; raises ``ConfigError``."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise ConfigError(f"not TOML: {clean(str(error))}") from None
    refuse_unknown(table, (*_SECTIONS, "quick"), "")
    quick = _quick(table)
    config = _config(table, text, directory, "")
    if not quick:
        if config.run.quick:
            raise ConfigError("run.quick: true, but there is no [quick.run], [quick.data] ...")
        return config
    # What is wrong now and was not before is in the quick values.
    merged = {**table, **{name: {**table.get(name, {}), **quick[name]} for name in quick}}
    quickly = _config(merged, text, directory, "quick.")
    return quickly if config.run.quick else config


def _quick(table: Mapping[str, Any]) -> dict[str, Mapping[str, object]]:
    """The tables under ``[quick]``, which may have the same names as those outside."""
    quick = table.get("quick", {})
    if not isinstance(quick, Mapping):
        raise ConfigError(f"quick: got {shown(quick)}, wanted tables such as [quick.run]")
    refuse_unknown(quick, _SECTIONS, "quick")
    for name, values in quick.items():
        if not isinstance(values, Mapping):
            raise ConfigError(f"quick.{name}: got {shown(values)}, wanted a table, [quick.{name}]")
    if "quick" in quick.get("run", {}):
        raise ConfigError("quick.run.quick: stands in [run] alone")
    return dict(quick)


def _config(table: Mapping[str, Any], text: str, directory: Path, place: str) -> Config:
    """The config in a table; ``place`` begins every key that a message names."""
    config = Config(
        run=struct_from(RunSettings, table.get("run", {}), f"{place}run"),
        data=struct_from(DataSettings, table.get("data", {}), f"{place}data"),
        model=_model(table.get("model", {}), f"{place}model"),
        optimizer=struct_from(OptimizerSettings, table.get("optimizer", {}), f"{place}optimizer"),
        schedule=struct_from(ScheduleSettings, table.get("schedule", {}), f"{place}schedule"),
        growth=struct_from(GrowthSettings, table.get("growth", {}), f"{place}growth"),
        log=struct_from(LogSettings, table.get("log", {}), f"{place}log"),
        text=text,
        directory=directory,
    )
    _check(config, table, place)
    return config


def _model(table: object, path: str) -> ModelSettings:
    if not isinstance(table, Mapping):
        return struct_from(MlpSettings, table, path)
    if "factory" in table:
        if "kind" in table:
            raise ConfigError(f"{path}.kind: got a {path}.factory too, wanted one of the two")
        return struct_from(FactorySettings, table, path)
    name = value_from(
        Literal["mlp", "cnn", "transformer"], table.get("kind", "mlp"), f"{path}.kind"
    )
    kind = _KINDS[name]
    known = [field.name for field in msgspec.structs.fields(kind)]
    refuse_unknown(table, [*known, "factory"], path)
    return struct_from(kind, table, path)


def _check(config: Config, table: Mapping[str, Mapping[str, object]], place: str) -> None:
    """What no single type can say."""
    optimizer, given = config.optimizer.name, table.get("optimizer", {})
    if "momentum" in given and optimizer != "sgd":
        raise ConfigError(f"{place}optimizer.momentum: {optimizer!r} has none, only 'sgd' has")
    if "betas" in given and optimizer == "sgd":
        raise ConfigError(f"{place}optimizer.betas: 'sgd' has none, only 'adam' and 'adamw' have")
    for name in config.growth.blueprints:
        if name not in LIBRARY:
            raise ConfigError(
                f"{place}growth.blueprints: unknown name {shown(name)}, {suggestion(name, LIBRARY)}"
            )
    for key, owner in (("final", "cosine"), ("every", "step"), ("factor", "step")):
        kind = config.schedule.kind
        if key in table.get("schedule", {}) and kind != owner:
            raise ConfigError(f"{place}schedule.{key}: {kind!r} has none, only {owner!r} has")
    _check_data(config.data, table["data"], f"{place}data")
    _check_model(config, f"{place}model")
    if config.log.nats is not None:
        if "@" in config.log.nats:  # The run's log holds the config, and is there to be shown.
            raise ConfigError(
                "log.nats: holds a user or password, which the run's log would keep; give it with "
                "--nats or in the environment (ESPER_NATS_CREDS, ESPER_NATS_NKEY)"
            )
        check_nats_url(config.log.nats, f"{place}log.nats")


def _check_data(data: DataSettings, given: Mapping[str, object], place: str) -> None:
    for key, owner in (("path", "fashion_mnist"), ("window", "characters")):
        if key in given and data.name != owner:
            raise ConfigError(f"{place}.{key}: {data.name!r} has none, only {owner!r} has")


def _check_model(config: Config, place: str) -> None:
    model, data = config.model, config.data.name
    if isinstance(model, FactorySettings):
        module, colon, function = model.factory.partition(":")
        if not (colon and function.isidentifier() and _is_dotted(module)):
            raise ConfigError(
                f"{place}.factory: got {shown(model.factory)}, wanted 'module:function'"
            )
        return
    kinds = _MODELS_FOR.get(data, ("mlp",))
    if model.kind not in kinds:
        wanted = " or ".join(map(repr, kinds))
        raise ConfigError(f"{place}.kind: {model.kind!r} cannot learn {data!r}, wanted {wanted}")
    if isinstance(model, TransformerSettings) and model.width % model.heads:
        raise ConfigError(
            f"{place}.heads: got {model.heads}, wanted a divisor of the width {model.width}"
        )


def check_nats_url(url: str, key: str) -> None:
    """Raise ``ConfigError`` naming ``key`` unless ``url`` can be the address of a NATS server."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("nats", "tls", "ws", "wss") and bool(parts.hostname)
        good = good and url.isprintable() and parts.port != 0
    except ValueError:
        good = False
    if not good:
        told = "an address that holds a password" if "@" in url else shown(url)
        raise ConfigError(f"{key}: got {told}, wanted an address such as nats://host:4222")


def with_seed(config: Config, seed: int | None) -> Config:
    """The config with ``run.seed`` replaced where ``seed`` is given."""
    if seed is None:
        return config
    checked = value_from(Seed, seed, "run.seed")
    return msgspec.structs.replace(config, run=msgspec.structs.replace(config.run, seed=checked))


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))
