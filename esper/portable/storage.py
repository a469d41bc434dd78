"""A grown model as a file, and a fresh model that grows again from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from esper.blueprints.build import build, parameter_count
from esper.blueprints.ir import BlueprintError, from_bytes
from esper.kasmina.errors import KasminaError, SlotError
from esper.kasmina.graft import GraftedSeed, GraftPoint, detach, module_at
from esper.kasmina.lattice import install_fossil
from esper.kasmina.record import DTYPES, GrowthRecord
from esper.kasmina.seed import Seed
from esper.portable.errors import StateError
from esper.portable.state import (
    EXTRA,
    GrownState,
    from_file,
    from_state,
    in_order,
    refuse_doubles,
    refuse_trials,
    write,
)


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write ``model``, grown or not, to a safetensors file that :func:`load` reads.

    The file appears whole or not at all; an existing one is replaced. Tensors that share memory
    (tied weights) are stored once.

    Raises:
        StateError: a seed is still on trial, or the state holds what is no tensor.
    """
    source = getattr(model, "_orig_mod", model)
    grown = from_state(source.state_dict(), "this model")
    refuse_trials(grown)
    write(grown, Path(path))


def load(model: nn.Module, source: str | os.PathLike[str] | Mapping[str, object]) -> nn.Module:
    """Let a fresh ``model`` grow into a saved one, weights included, and return it.

    Args:
        model: a new instance of the user's own class, not grown. Its parameters keep their
            identity; make the optimizer afterwards, so that it holds what has grown too.
        source: a file of :func:`save`, or the ``state_dict`` of a grown model.

    Raises:
        StateError: the source cannot be read, was changed after it was written, or is not a state
            of such a model; ``model`` is then as it was.
        FileNotFoundError: there is no such file.
    """
    target: nn.Module = getattr(model, "_orig_mod", model)
    if any(isinstance(module, GraftPoint) for module in target.modules()):
        raise StateError(
            "the model has grown already, wanted a fresh instance of its class (for a state of "
            "the same growth, load_state_dict does)"
        )
    grown = (
        from_state(source, "the state") if isinstance(source, Mapping) else from_file(Path(source))
    )
    refuse_trials(grown)
    refuse_doubles(grown)
    installed: list[GrowthRecord] = []
    try:
        for record in grown.records:
            _install(target, record, grown)
            installed.append(record)
        _require_same(target, grown)
    except BaseException:
        for record in reversed(installed):
            detach(target, str(record.seed), record.start, record.end)
        raise
    weights: dict[str, object] = dict(grown.weights)
    extra = {name: value for name, value in target.state_dict().items() if name.endswith(EXTRA)}
    target.load_state_dict(weights | extra)
    return model


def growth_of(model: nn.Module) -> tuple[GrowthRecord, ...]:
    """The record of every seed grafted into ``model``, in the order in which they can grow."""
    seeds = [module for module in model.modules() if isinstance(module, GraftedSeed)]
    return in_order(seed.record for seed in seeds if seed.record is not None)


def _install(model: nn.Module, record: GrowthRecord, grown: GrownState) -> None:
    """Build the body of ``record`` into ``model``; its weights come later."""
    origin = grown.origin
    modules = [_module_at(model, path, origin) for path in (record.start, record.end)]
    device = next((p.device for p in modules[1].parameters()), torch.device("cpu"))
    slot = record.slot_on(device)
    try:
        blueprint = from_bytes(record.blueprint.encode())
        dtype = _dtype_of(record, parameter_count(blueprint, slot), grown)
        body = build(blueprint, slot, torch.Generator()).to(dtype)
    except BlueprintError as error:
        raise StateError(f"{origin}: seed {record.seed} in slot {slot.id}: {error}") from None
    body.train(modules[1].training)
    recipe = record.blueprint.encode()
    try:
        install_fossil(model, Seed(record.seed, slot, blueprint.id, body, recipe=recipe))
    except KasminaError as error:
        raise StateError(f"{origin}: seed {record.seed} in slot {slot.id}: {error}") from None


def _module_at(model: nn.Module, path: str, origin: str) -> nn.Module:
    try:
        return module_at(model, path)
    except SlotError:
        raise StateError(
            f"{origin} grew at {path}, and this {type(model).__name__} has no such module: wanted "
            "a fresh instance of the class it was saved from"
        ) from None


def _dtype_of(record: GrowthRecord, wanted: int, grown: GrownState) -> torch.dtype:
    """The dtype of a body's weights, which may have been cast since it was built.

    A body without weights is refused before any memory is spent on it.
    """
    prefix = _without_hosts(f"{record.end}.seeds.{record.seed}.body.")
    own = [t for name, t in grown.weights.items() if _without_hosts(name).startswith(prefix)]
    got = sum(tensor.numel() for tensor in own)
    if got < wanted:
        raise StateError(
            f"{grown.origin}: seed {record.seed} in slot {record.slot} has {got} weights there, "
            f"its blueprint wants {wanted}"
        )
    return next((t.dtype for t in own if t.is_floating_point()), DTYPES[record.dtype])


def _without_hosts(name: str) -> str:
    """``name`` without the steps that a graft point adds, also around what grew before it."""
    return ".".join(step for step in name.split(".") if step != "host")


def _require_same(model: nn.Module, grown: GrownState) -> None:
    """Compare names, shapes and dtypes before anything is copied."""
    own = {n: t for n, t in model.state_dict().items() if not n.endswith(EXTRA)}
    differences = [f"{name} is missing" for name in own if name not in grown.weights]
    differences += [f"{name} is unknown to the model" for name in grown.weights if name not in own]
    differences += [
        f"{name} is {_kind(grown.weights[name])}, the model's is {_kind(tensor)}"
        for name, tensor in own.items()
        if name in grown.weights and _kind(grown.weights[name]) != _kind(tensor)
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise StateError(
            f"{grown.origin} does not fit this {type(model).__name__}: "
            f"{'; '.join(differences[:3])}{more}"
        )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
