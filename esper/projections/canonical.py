"""One form for equal states: the same bytes whatever order their mappings were filled in."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import msgspec


def canonical_bytes(state: object) -> bytes:
    """``state`` in msgpack, its fields by name and its mappings by key, both in order.

    Floats keep their bits, those of a NaN too.
    """
    return msgspec.msgpack.encode(_ordered(msgspec.to_builtins(state)))


def canonical_digest(state: object) -> str:
    """SHA-256 in hex of `canonical_bytes`."""
    return hashlib.sha256(canonical_bytes(state)).hexdigest()


def as_json(state: object) -> Any:
    """``state`` as what JSON can hold, its mappings in order of keys.

    JSON has no number for them, so NaN and infinities become the texts nan, inf and -inf.
    """
    return _printable(_ordered(msgspec.to_builtins(state)))


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_ordered(item) for item in value]
    return value


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
