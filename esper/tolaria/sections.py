"""The sections of a config as frozen structs, with the bounds of every value."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from esper.tolaria.settings import GrowthSettings

MAX_LAYERS = 64

StepCount = Annotated[int, msgspec.Meta(ge=1, le=10**9)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Width = Annotated[int, msgspec.Meta(ge=1, le=65536)]
Share = Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0.0)]
ActivationName = Literal["relu", "gelu", "silu", "tanh"]
DataName = Literal["digits", "mnist1d", "mnist1d_shuffled", "fashion_mnist", "characters"]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class RunSettings(_Table, frozen=True, kw_only=True):
    """``[run]``: optimizer steps of each training, seed of everything random, torch threads, and
    examples a step. A checkpoint is written every ``checkpoint_every`` steps while nothing is on
    trial. With ``quick`` the values under ``[quick.run]``, ``[quick.data]`` and so on take the
    place of those in ``[run]``, ``[data]`` and so on."""

    steps: StepCount
    quick: bool = False
    seed: Seed = 0
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 32
    checkpoint_every: StepCount = 500


class DataSettings(_Table, frozen=True, kw_only=True):
    """``[data]``: which data set. ``examples`` limits the training part to so many of its first;
    ``path`` is a directory with the files of Fashion-MNIST (none: where they are usually);
    ``window`` the number of characters in an example."""

    name: DataName
    examples: Annotated[int, msgspec.Meta(ge=2, le=10**9)] | None = None
    path: str | None = None
    window: Annotated[int, msgspec.Meta(ge=2, le=1024)] = 64


class MlpSettings(_Table, frozen=True, kw_only=True):
    """``[model]`` with ``kind = "mlp"``: widths of the hidden layers, first to last."""

    kind: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Width, ...], msgspec.Meta(max_length=MAX_LAYERS)]
    activation: ActivationName = "relu"
    dropout: Share = 0.0
    batchnorm: bool = False


class CnnSettings(_Table, frozen=True, kw_only=True):
    """``[model]`` with ``kind = "cnn"``: channels of the convolutions, first to last, each with a
    square kernel of ``kernel`` and followed by pooling over 2 x 2, then widths of the ``hidden``
    layers on what is left of the image."""

    kind: Literal["cnn"]
    channels: Annotated[tuple[Width, ...], msgspec.Meta(min_length=1, max_length=MAX_LAYERS)]
    hidden: Annotated[tuple[Width, ...], msgspec.Meta(max_length=MAX_LAYERS)] = ()
    kernel: Literal[1, 3, 5, 7] = 3
    activation: ActivationName = "relu"
    pooling: Literal["max", "average"] = "max"
    batchnorm: bool = False


class TransformerSettings(_Table, frozen=True, kw_only=True):
    """``[model]`` with ``kind = "transformer"``: ``layers`` blocks of causal attention with
    ``heads`` heads and an MLP with ``hidden`` units (none: four times the width)."""

    kind: Literal["transformer"]
    width: Width
    layers: Annotated[int, msgspec.Meta(ge=1, le=MAX_LAYERS)]
    heads: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    hidden: Width | None = None
    activation: ActivationName = "gelu"
    dropout: Share = 0.0


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


class ScheduleSettings(_Table, frozen=True, kw_only=True):
    """``[schedule]``: how the learning rate changes after ``warmup`` steps in which it rises to
    the optimizer's ``lr``. It stays there; or falls along a cosine to the fraction ``final`` at
    the end of the run; or is multiplied by ``factor`` after every ``every`` steps."""

    kind: Literal["constant", "cosine", "step"] = "constant"
    warmup: Annotated[int, msgspec.Meta(ge=0, le=10**9)] = 0
    final: Share = 0.0
    every: StepCount = 1000
    factor: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.1


class LogSettings(_Table, frozen=True, kw_only=True):
    """``[log]``: whose acknowledgement a change waits for; ``nats`` a server of one's own (none:
    the workspace's own); ``workspace`` a directory (none: ``$ESPER_WORKSPACE`` or ``.esper``)."""

    ack: Literal["journal", "jetstream"] = "journal"
    nats: str | None = None
    workspace: str | None = None


ModelSettings = MlpSettings | CnnSettings | TransformerSettings | FactorySettings


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A whole config, quick values in place. ``text`` is the file as it was, ``directory`` where
    it lies."""

    run: RunSettings
    data: DataSettings
    model: ModelSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    growth: GrowthSettings
    log: LogSettings
    text: str
    directory: Path
