"""A grown model as a file, and a fresh model that grows again from it.

The file is safetensors: the weights of the host and of everything that has grown, and in its
metadata one record for each graft (slot and blueprint) with a digest over records and weights.
Nothing in it is code, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from esper.blueprints.build import Signature, build, parameter_count
from esper.blueprints.ir import BlueprintError, from_bytes
from esper.kasmina.digest import weights_digest
from esper.kasmina.errors import KasminaError
from esper.kasmina.graft import GraftedSeed, GraftPoint, detach
from esper.kasmina.lattice import install_fossil
from esper.kasmina.record import DTYPES, GrowthRecord, decode_record, from_tensor
from esper.kasmina.seed import Seed
from esper.portable.errors import StateError

FORMAT = "1"
MAX_GRAFTS = 4096

_EXTRA = "_extra_state"


class _Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``growth``: records in the order in which they grow; ``aliases``: names of tensors that
    share their memory with another one, and that one's."""

    growth: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_GRAFTS)]
    aliases: dict[str, str]


@dataclass(frozen=True)
class _Grown:
    """Weights by the names of the grown model's ``state_dict``, and how it has grown."""

    weights: dict[str, Tensor]
    records: tuple[GrowthRecord, ...]
    origin: str


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write ``model``, grown or not, to a safetensors file that :func:`load` reads.

    The file appears whole or not at all; an existing one is replaced. Tensors that share memory
    (tied weights) are stored once.

    Raises:
        StateError: a seed is still on trial, or the state holds what is no tensor.
    """
    source = getattr(model, "_orig_mod", model)
    grown = _from_state(source.state_dict(), "this model")
    _refuse_trials(grown)
    kept, aliases = _without_aliases(grown.weights)
    growth = tuple(record.encode().decode() for record in grown.records)
    described = msgspec.json.encode(_Metadata(growth, aliases), order="sorted").decode()
    metadata = {
        "format": "pt",
        "esper": FORMAT,
        "esper.growth": described,
        "esper.digest": _digest(described, kept),
    }
    _write(kept, metadata, Path(path))


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
        _from_state(source, "the state")
        if isinstance(source, Mapping)
        else _from_file(Path(source))
    )
    _refuse_trials(grown)
    _refuse_doubles(grown)
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
    extra = {name: value for name, value in target.state_dict().items() if name.endswith(_EXTRA)}
    target.load_state_dict(weights | extra)
    return model


def growth_of(model: nn.Module) -> tuple[GrowthRecord, ...]:
    """The record of every seed grafted into ``model``, in the order in which they can grow."""
    seeds = [module for module in model.modules() if isinstance(module, GraftedSeed)]
    return _in_order(seed.record for seed in seeds if seed.record is not None)


def _in_order(records: Iterable[GrowthRecord]) -> tuple[GrowthRecord, ...]:
    return tuple(sorted(records, key=lambda record: record.order))


def _refuse_trials(grown: _Grown) -> None:
    for record in grown.records:
        if record.trial:
            raise StateError(
                f"{grown.origin} was taken while seed {record.seed} in slot {record.slot} was on "
                "trial, and it may have been taken out since; take it when the seed has been "
                "decided, at the latest after growth.close()"
            )


def _refuse_doubles(grown: _Grown) -> None:
    for places in (
        [(record.seed, record.end) for record in grown.records],
        [(record.seed, record.start) for record in grown.records if record.source == "span"],
    ):
        twice = next((place for place in places if places.count(place) > 1), None)
        if twice is not None:
            raise StateError(f"{grown.origin}: seed {twice[0]} stands at {twice[1]} twice")


def _from_state(state: Mapping[str, object], origin: str) -> _Grown:
    weights: dict[str, Tensor] = {}
    records: list[GrowthRecord] = []
    for name, value in state.items():
        if name.endswith(f".{_EXTRA}") and ".seeds." in f".{name}":
            records.append(_readable(value, name, origin))
        elif isinstance(value, Tensor) and not name.endswith(_EXTRA):
            weights[name] = value
        else:
            raise StateError(
                f"{origin} holds {name} ({type(value).__name__}), wanted parameters and buffers"
            )
    return _Grown(weights, _in_order(records), origin)


def _readable(value: object, name: str, origin: str) -> GrowthRecord:
    try:
        return from_tensor(value)
    except KasminaError as error:
        raise StateError(
            f"{origin} does not say how {name.removesuffix(_EXTRA)[:-1]} has grown: {error}"
        ) from None


def _without_aliases(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, tensor in weights.items():
        same = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() and same in first:
            aliases[name] = first[same]
        else:
            first[same] = name
            kept[name] = tensor.detach().contiguous().clone()
    return kept, aliases


def _digest(described: str, weights: Mapping[str, Tensor]) -> str:
    text = f"{len(described.encode())}:{described}{weights_digest(weights)}"
    return hashlib.sha256(text.encode()).hexdigest()


def _write(weights: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        save_file(weights, name, metadata)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _from_file(path: Path) -> _Grown:
    origin = str(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, IsADirectoryError) as error:
        raise StateError(
            f"{origin} is no safetensors file ({error}); for one of torch.save, pass "
            "torch.load(path, weights_only=True) in place of the path"
        ) from None
    described, digest = metadata.get("esper.growth"), metadata.get("esper.digest")
    if described is None or digest is None:
        raise StateError(f"{origin} does not say how its model has grown; write it by esper.save")
    if metadata.get("esper") != FORMAT:
        raise StateError(
            f"{origin} is of format {metadata.get('esper')!r}, wanted {FORMAT!r}: another version "
            "of Esper wrote it"
        )
    if _digest(described, weights) != digest:
        raise StateError(f"{origin} was changed after it was written: its digest does not match")
    try:
        read = msgspec.json.decode(described, type=_Metadata)
        records = tuple(decode_record(text.encode()) for text in read.growth)
        weights |= {name: weights[kept] for name, kept in read.aliases.items()}
    except (msgspec.MsgspecError, KasminaError, KeyError, RecursionError) as error:
        raise StateError(f"{origin}: its description of the growth is malformed: {error}") from None
    return _Grown(weights, _in_order(records), origin)


def _install(model: nn.Module, record: GrowthRecord, grown: _Grown) -> None:
    """Build the body of ``record`` into ``model``; its weights come later."""
    origin = grown.origin
    modules = [_module_at(model, path, origin) for path in (record.start, record.end)]
    device = next((p.device for p in modules[1].parameters()), torch.device("cpu"))
    slot = record.slot_on(device)
    signature = Signature(
        slot.in_shape, slot.in_axis, slot.out_shape, slot.out_axis, slot.dtype, device
    )
    try:
        blueprint = from_bytes(record.blueprint.encode())
        dtype = _dtype_of(record, parameter_count(blueprint, signature), grown)
        body = build(blueprint, signature, torch.Generator()).to(dtype)
    except BlueprintError as error:
        raise StateError(f"{origin}: seed {record.seed} in slot {slot.id}: {error}") from None
    body.train(modules[1].training)
    recipe = record.blueprint.encode()
    try:
        install_fossil(model, Seed(record.seed, slot, blueprint.id, body, recipe=recipe))
    except KasminaError as error:
        raise StateError(f"{origin}: seed {record.seed} in slot {slot.id}: {error}") from None


def _module_at(model: nn.Module, path: str, origin: str) -> nn.Module:
    parent_path, _, name = path.rpartition(".")
    try:
        found = model.get_submodule(parent_path)._modules.get(name)
    except AttributeError:
        found = None
    if found is None:
        raise StateError(
            f"{origin} grew at {path}, and this {type(model).__name__} has no such module: wanted "
            "a fresh instance of the class it was saved from"
        )
    return found


def _dtype_of(record: GrowthRecord, wanted: int, grown: _Grown) -> torch.dtype:
    """The dtype of a body's weights, which may have been cast since it was built.

    A body without weights is refused before any memory is spent on it.
    """
    prefix = f"{record.end}.seeds.{record.seed}.body."
    own = [tensor for name, tensor in grown.weights.items() if name.startswith(prefix)]
    got = sum(tensor.numel() for tensor in own)
    if got < wanted:
        raise StateError(
            f"{grown.origin}: seed {record.seed} in slot {record.slot} has {got} weights there, "
            f"its blueprint wants {wanted}"
        )
    return next((t.dtype for t in own if t.is_floating_point()), DTYPES[record.dtype])


def _require_same(model: nn.Module, grown: _Grown) -> None:
    """Compare names, shapes and dtypes before anything is copied."""
    own = {n: t for n, t in model.state_dict().items() if not n.endswith(_EXTRA)}
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
