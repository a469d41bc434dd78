"""From an untyped table to a frozen struct, with one clear line for whatever is wrong."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

S = TypeVar("S", bound=msgspec.Struct)


class ConfigError(ValueError):
    """A config that cannot be used. The message is one line and names the key at fault."""


def struct_from(kind: type[S], table: object, path: str) -> S:
    """The struct of type ``kind`` that ``table`` holds; ``path`` is its key in the file.

    Raises ``ConfigError`` for an unknown key, a missing one, a wrong type or a value out of
    bounds.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{path}: got {shown(table)}, wanted a table, [{path}]")
    fields = msgspec.structs.fields(kind)
    refuse_unknown(table, [field.name for field in fields], path)
    values: dict[str, Any] = {}
    for field in fields:
        key = f"{path}.{field.name}"
        if field.name in table:
            values[field.name] = value_from(field.type, table[field.name], key)
        elif field.required:
            raise ConfigError(f"{key}: missing, wanted {wanted(field.type)}")
    return kind(**values)


def value_from(kind: Any, value: object, key: str) -> Any:
    """``value`` as ``kind``, a type that msgspec knows; raises ``ConfigError`` naming ``key``."""
    try:
        result = msgspec.convert(value, type=kind, strict=True)
    except msgspec.ValidationError as error:
        info = inspect.type_info(kind)
        index = _item_at_fault(str(error))
        if index is not None and isinstance(value, list):
            key, value = f"{key}[{index}]", value[index]
            info = _item(info, index)
        raise ConfigError(f"{key}: got {shown(value)}, wanted {_wanted(info)}") from None
    if isinstance(result, float) and not math.isfinite(result):
        raise ConfigError(f"{key}: got {result}, wanted {wanted(kind)}")
    return result


def refuse_unknown(table: Mapping[str, object], known: Iterable[str], path: str) -> None:
    """Raise ``ConfigError`` for the first key that is not known, with the nearest that is."""
    known = list(known)
    for key in table:
        if key in known:
            continue
        name = f"{path}.{key}" if path else key
        raise ConfigError(f"{clean(name)}: unknown key, {suggestion(key, known)}")


def suggestion(got: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` where something known is near, else what there is to choose from."""
    known = list(known)
    near = difflib.get_close_matches(got, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"wanted one of {', '.join(known)}"


def shown(value: object) -> str:
    """A value as the user wrote it, shortened, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a table"
    try:
        text = repr(value)
    except ValueError:  # CPython refuses to print very long integers.
        return "a very long number"
    return text if len(text) <= 60 else f"{text[:57]}..."


def clean(text: str) -> str:
    """A name without the control characters that a quoted key may hold."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)[:120]


def wanted(kind: Any) -> str:
    """What a type asks for, in words."""
    return _wanted(inspect.type_info(kind))


def _wanted(info: inspect.Type) -> str:
    match info:
        case inspect.Metadata():
            return _wanted(info.type)
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "a whole number" + _bounds(info)
        case inspect.FloatType():
            return "a number" + _bounds(info)
        case inspect.StrType():
            return "text" if info.pattern is None else "text of the form " + info.pattern
        case inspect.LiteralType():
            choices = ", ".join(repr(value) for value in info.values)
            return choices if len(info.values) == 1 else f"one of {choices}"
        case inspect.VarTupleType() | inspect.ListType():
            return f"a list of items, each {_wanted(info.item_type)}"
        case inspect.TupleType():
            return "a list of " + " and ".join(_wanted(t) for t in info.item_types)
        case inspect.UnionType():
            return " or ".join(
                _wanted(t) for t in info.types if not isinstance(t, inspect.NoneType)
            )
        case inspect.DictType():
            return "a table"
        case _:
            return type(info).__name__.removesuffix("Type").lower()


def _bounds(info: inspect.IntType | inspect.FloatType) -> str:
    low = info.ge if info.ge is not None else info.gt
    high = info.le if info.le is not None else info.lt
    above = "above" if info.ge is None else "of at least"
    below = "below" if info.le is None else "of at most"
    if low is not None and high is not None:
        if info.ge is not None and info.le is not None:
            return f" from {_figure(low)} to {_figure(high)}"
        return f" {above} {_figure(low)} and {below} {_figure(high)}"
    if low is not None:
        return f" {above} {_figure(low)}"
    return f" {below} {_figure(high)}" if high is not None else ""


def _figure(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _item_at_fault(message: str) -> int | None:
    """1 from msgspec's ``... - at `$[1]```; None where the value itself is at fault."""
    found = re.search(r" - at `\$\[(\d+)\]`$", message)
    return int(found[1]) if found else None


def _item(info: inspect.Type, index: int) -> inspect.Type:
    match info:
        case inspect.Metadata():
            return _item(info.type, index)
        case inspect.VarTupleType() | inspect.ListType():
            return info.item_type
        case inspect.TupleType():
            return info.item_types[index]
        case _:
            return info
