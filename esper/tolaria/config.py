"""The config of ``esper train``: a TOML file, strictly checked, as frozen structs.

Reading needs no torch, so that a mistake is told before anything slow is loaded.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from esper.blueprints.library import LIBRARY
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
    "Config",
    "ConfigError",
    "DataSettings",
    "FactorySettings",
    "LogSettings",
    "MlpSettings",
    "OptimizerSettings",
    "RunSettings",
    "parse",
    "read",
]

MAX_BYTES = 1024 * 1024
MAX_LAYERS = 64

StepCount = Annotated[int, msgspec.Meta(ge=1, le=10**9)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Width = Annotated[int, msgspec.Meta(ge=1, le=65536)]
Share = Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0.0)]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class RunSettings(_Table, frozen=True, kw_only=True):
    """``[run]``: optimizer steps of each training, seed of everything random, torch threads, and
    examples a step."""

    steps: StepCount
    seed: Seed = 0
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 32


class DataSettings(_Table, frozen=True, kw_only=True):
    """``[data]``: which data set."""

    name: Literal["digits", "mnist1d", "mnist1d_shuffled"]


class MlpSettings(_Table, frozen=True, kw_only=True):
    """``[model]`` with ``kind = "mlp"``: widths of the hidden layers, first to last."""

    kind: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Width, ...], msgspec.Meta(max_length=MAX_LAYERS)]
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    dropout: Share = 0.0
    batchnorm: bool = False


class FactorySettings(_Table, frozen=True, kw_only=True):
    """``[model]`` with ``factory``: ``module:function`` of one's own, called with ``arguments``,
    returns the module. The config's directory is searched first."""

    factory: str
    arguments: dict[str, Any] = {}


class OptimizerSettings(_Table, frozen=True, kw_only=True):
    """``[optimizer]``: ``momentum`` is for sgd alone, ``betas`` for adam and adamw."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Annotated[float, msgspec.Meta(gt=0.0, le=1000.0)] = 1e-3
    weight_decay: NotNegative = 0.0
    momentum: Share = 0.0
    betas: tuple[Share, Share] = (0.9, 0.999)


class LogSettings(_Table, frozen=True, kw_only=True):
    """``[log]``: whose acknowledgement a change waits for; ``nats`` a server of one's own (none:
    the workspace's own); ``workspace`` a directory (none: ``$ESPER_WORKSPACE`` or ``.esper``)."""

    ack: Literal["journal", "jetstream"] = "journal"
    nats: str | None = None
    workspace: str | None = None


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A whole config. ``text`` is the file as it was, ``directory`` where it lies."""

    run: RunSettings
    data: DataSettings
    model: MlpSettings | FactorySettings
    optimizer: OptimizerSettings
    growth: GrowthSettings
    log: LogSettings
    text: str
    directory: Path


_SECTIONS = ("run", "data", "model", "optimizer", "growth", "log")


def read(path: Path) -> Config:
    """The config in a file; raises ``ConfigError``, whose line begins with the path."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: got {len(data)} bytes, wanted at most {MAX_BYTES}")
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
    refuse_unknown(table, _SECTIONS, "")
    config = Config(
        run=struct_from(RunSettings, table.get("run", {}), "run"),
        data=struct_from(DataSettings, table.get("data", {}), "data"),
        model=_model(table.get("model", {})),
        optimizer=struct_from(OptimizerSettings, table.get("optimizer", {}), "optimizer"),
        growth=struct_from(GrowthSettings, table.get("growth", {}), "growth"),
        log=struct_from(LogSettings, table.get("log", {}), "log"),
        text=text,
        directory=directory,
    )
    _check(config, table)
    return config


def _model(table: object) -> MlpSettings | FactorySettings:
    if isinstance(table, Mapping) and "factory" in table:
        if "kind" in table:
            raise ConfigError("model.kind: got a model.factory too, wanted one of the two")
        return struct_from(FactorySettings, table, "model")
    if isinstance(table, Mapping):
        known = {field.name for field in msgspec.structs.fields(MlpSettings)}
        refuse_unknown(table, sorted(known | {"factory"}), "model")
    return struct_from(MlpSettings, table, "model")


def _check(config: Config, table: Mapping[str, Mapping[str, object]]) -> None:
    """What no single type can say."""
    optimizer = table.get("optimizer", {})
    if "momentum" in optimizer and config.optimizer.name != "sgd":
        raise ConfigError(f"optimizer.momentum: {config.optimizer.name!r} has none, only 'sgd' has")
    if "betas" in optimizer and config.optimizer.name == "sgd":
        raise ConfigError("optimizer.betas: 'sgd' has none, only 'adam' and 'adamw' have")
    for name in config.growth.blueprints:
        if name not in LIBRARY:
            raise ConfigError(
                f"growth.blueprints: unknown name {shown(name)}, {suggestion(name, LIBRARY)}"
            )
    if isinstance(config.model, FactorySettings):
        module, colon, function = config.model.factory.partition(":")
        if not (colon and function.isidentifier() and _is_dotted(module)):
            raise ConfigError(
                f"model.factory: got {shown(config.model.factory)}, wanted 'module:function'"
            )
    if config.log.nats is not None:
        if "@" in config.log.nats:  # The run's log holds the config, and is there to be shown.
            raise ConfigError(
                "log.nats: holds a user or password, which the run's log would keep; give it with "
                "--nats or in the environment (ESPER_NATS_CREDS, ESPER_NATS_NKEY)"
            )
        check_nats_url(config.log.nats, "log.nats")


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
