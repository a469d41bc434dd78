"""The state of a grown model as data: in memory, and in a file.

The file is safetensors: the weights of the host and of everything that has grown, and in its
metadata one record for each graft (slot and blueprint) with a digest over records and weights.
Nothing in it is code, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from esper.kasmina.digest import weights_digest
from esper.kasmina.errors import KasminaError
from esper.kasmina.record import GrowthRecord, decode_record, from_tensor
from esper.portable.errors import StateError

FORMAT = "1"
MAX_GRAFTS = 4096
EXTRA = "_extra_state"


class _Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``growth``: records in the order in which they grow; ``aliases``: names of tensors that
    share their memory with another one, and that one's."""

    growth: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_GRAFTS)]
    aliases: dict[str, str]


@dataclass(frozen=True)
class GrownState:
    """Weights by the names of the grown model's ``state_dict``, and how it has grown."""

    weights: dict[str, Tensor]
    records: tuple[GrowthRecord, ...]
    origin: str


def from_state(state: Mapping[str, object], origin: str) -> GrownState:
    """The state that the ``state_dict`` of a grown model holds; ``origin`` is its name in messages.

    Raises:
        StateError: it holds what is neither a tensor nor a record of growth.
    """
    weights: dict[str, Tensor] = {}
    records: list[GrowthRecord] = []
    for name, value in state.items():
        if name.endswith(f".{EXTRA}") and ".seeds." in f".{name}":
            records.append(_readable(value, name, origin))
        elif isinstance(value, Tensor) and not name.endswith(EXTRA):
            weights[name] = value
        else:
            raise StateError(
                f"{origin} holds {name} ({type(value).__name__}), wanted parameters and buffers"
            )
    return GrownState(weights, in_order(records), origin)


def _readable(value: object, name: str, origin: str) -> GrowthRecord:
    try:
        return from_tensor(value)
    except KasminaError as error:
        raise StateError(
            f"{origin} does not say how {name.removesuffix(EXTRA)[:-1]} has grown: {error}"
        ) from None


def write(grown: GrownState, path: Path) -> None:
    """Write a file that :func:`from_file` reads; it appears whole or not at all."""
    kept, aliases = _without_aliases(grown.weights)
    growth = tuple(record.encode().decode() for record in grown.records)
    described = msgspec.json.encode(_Metadata(growth, aliases), order="sorted").decode()
    metadata = {
        "format": "pt",
        "esper": FORMAT,
        "esper.growth": described,
        "esper.digest": _digest(described, kept),
    }
    _replace(kept, metadata, path)


def from_file(path: Path) -> GrownState:
    """The state in a file of :func:`write`.

    Raises:
        StateError: it is no such file, or was changed after it was written.
        FileNotFoundError: there is no such file.
    """
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
    return GrownState(weights, in_order(records), origin)


def refuse_trials(grown: GrownState) -> None:
    """Raises ``StateError`` where a seed might have been taken out again since."""
    for record in grown.records:
        if record.trial:
            raise StateError(
                f"{grown.origin} was taken while seed {record.seed} in slot {record.slot} was on "
                "trial, and it may have been taken out since; take it when the seed has been "
                "decided, at the latest after growth.close()"
            )


def refuse_doubles(grown: GrownState) -> None:
    """Raises ``StateError`` where two seeds claim one place."""
    for places in (
        [(record.seed, record.end) for record in grown.records],
        [(record.seed, record.start) for record in grown.records if record.source == "span"],
    ):
        twice = next((place for place in places if places.count(place) > 1), None)
        if twice is not None:
            raise StateError(f"{grown.origin}: seed {twice[0]} stands at {twice[1]} twice")


def in_order(records: Iterable[GrowthRecord]) -> tuple[GrowthRecord, ...]:
    """The records in the order in which they can grow."""
    return tuple(sorted(records, key=lambda record: record.order))


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


def _replace(weights: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        draft.touch(exist_ok=False)
        permissions = draft.stat().st_mode  # Those of the user's files; safetensors has its own.
        save_file(weights, draft, metadata)
        draft.chmod(permissions)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
