"""Plain values as JSON and tensors, and back: all that a checkpoint can hold.

JSON has no tuples, no keys but text, and no NaN; those become objects with one key that names
them. A tensor becomes the name of an entry in a table beside the JSON. Whatever else a value
holds is refused with its place, so that nothing is lost silently and nothing is ever unpickled.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MAX_DEPTH = 64

_MAPPINGS: dict[str, type[dict[Any, Any]]] = {
    "dict": dict,
    "ordered": OrderedDict,
    "counter": Counter,
}
_EXACT = 1 << 53
"""Larger integers are not exact for every reader of JSON."""


class ValueRefusedError(ValueError):
    """A value that no checkpoint can hold; the message says where it stands and what it is."""


class Packer:
    """Turns values into JSON and gathers their tensors, copied to the CPU, by name."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def pack(self, value: object, place: str) -> Any:
        """The JSON of ``value``; ``place`` names it in messages and in the table of tensors.

        Raises:
            ValueRefusedError: it is, or holds, something that is no plain value.
        """
        return self._pack(value, place, 0)

    def _pack(self, value: object, place: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueRefusedError(f"{place} is nested more than {MAX_DEPTH} deep")
        kind = type(value)
        if value is None or kind is bool or (isinstance(value, str) and _is_text(value, kind)):
            return value
        if isinstance(value, int) and kind is int:
            return value if abs(value) <= _EXACT else {"int": str(value)}
        if isinstance(value, float) and kind is float:
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, (list, tuple)) and kind in (list, tuple):
            items = [self._pack(v, f"{place}/{n}", depth + 1) for n, v in enumerate(value)]
            return items if kind is list else {"tuple": items}
        if isinstance(value, Mapping) and kind in _MAPPINGS.values():
            name = next(name for name, mapping in _MAPPINGS.items() if kind is mapping)
            return {name: self._pairs(value, place, depth)}
        if isinstance(value, Tensor):
            return self._tensor(value, place)
        raise ValueRefusedError(
            f"{place} is a {kind.__module__}.{kind.__qualname__}, wanted tensors, numbers, text, "
            "lists, tuples and mappings of them"
        )

    def _pairs(self, values: Mapping[object, object], place: str, depth: int) -> Any:
        pairs = []
        for key, item in values.items():
            if type(key) not in (str, int, float, bool):
                raise ValueRefusedError(f"{place} has the key {key!r}, wanted text or a number")
            pairs.append(
                [self._pack(key, place, depth + 1), self._pack(item, f"{place}/{key}", depth + 1)]
            )
        return pairs

    def _tensor(self, tensor: Tensor, place: str) -> dict[str, str]:
        plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
        if not plain or tensor.is_meta or tensor.is_quantized:
            raise ValueRefusedError(f"{place} is no ordinary dense tensor ({type(tensor)})")
        name = place if place not in self.tensors else f"{place}#{len(self.tensors)}"
        copied = tensor.detach().resolve_conj().resolve_neg().to("cpu", copy=True)
        self.tensors[name] = copied.contiguous()
        packed = {"tensor": name}
        return packed if tensor.device.type == "cpu" else packed | {"device": str(tensor.device)}


def _is_text(value: str, kind: type) -> bool:
    """Whether JSON can hold it: no subclass, and no half of a surrogate pair."""
    return kind is str and (value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value))


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that was packed.

    Raises:
        ValueRefusedError: no packer wrote this.
    """
    try:
        return _unpack(packed, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise ValueRefusedError(f"not a packed value: {type(error).__name__}: {error}") from error


def _unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(packed, list):
        return [_unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    (kind, content), *_ = packed.items()
    match kind:
        case "int":
            return int(content)
        case "float":
            return float(content)
        case "tuple":
            return tuple(_unpack(item, tensors) for item in content)
        case "tensor" | "device":
            return tensors[packed["tensor"]].to(packed.get("device", "cpu"))
        case _:
            pairs = ((_unpack(key, tensors), _unpack(item, tensors)) for key, item in content)
            return _MAPPINGS[kind](dict(pairs))
