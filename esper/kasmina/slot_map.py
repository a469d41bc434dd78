"""The slots of a host as a person reads them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from esper.kasmina.signature import Slot

_SHOWN = 3
"""Modules that one reason is shown with by name; the others are counted."""


@dataclass(frozen=True)
class SlotMap:
    """The slots of a host by id, and the reason for every module that carries none.

    Printed, slots of numbered layers that differ in the number alone stand in one line, and so do
    modules that are left out for one reason.
    """

    slots: dict[str, Slot]
    left_out: dict[str, str]

    def __str__(self) -> str:
        rows = _rows(self.slots.values())
        width = max((len(name) for name, _, _ in rows), default=0)
        lines = [f"{len(self.slots)} slots"]
        lines += [f"  {name:{width}}  {shapes}{numbers}" for name, shapes, numbers in rows]
        return "\n".join(lines + left_out_lines(self.left_out))


def left_out_lines(left_out: dict[str, str]) -> list[str]:
    """A line for each reason, with the modules that it concerns."""
    names: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        names.setdefault(reason, []).append(name or "the model")
    return [f"  no slot on {_some(members)}: {reason}" for reason, members in names.items()]


def _some(names: list[str]) -> str:
    shown = names if len(names) <= _SHOWN + 1 else names[:_SHOWN]
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    return ", ".join(shown) + more


def _rows(slots: Iterable[Slot]) -> list[tuple[str, str, str]]:
    """Name, shapes and the numbers of the layers that a line stands for."""
    groups: dict[tuple[str, str], list[tuple[int | None, str]]] = {}
    for slot in slots:
        reads = f"{slot.in_shape} to " if slot.source == "span" else ""
        pattern, number = _pattern(slot)
        groups.setdefault((pattern, f"{reads}{slot.out_shape}"), []).append((number, slot.id))
    rows = []
    for (pattern, shapes), members in groups.items():
        if len(members) == 1:
            rows.append((members[0][1], shapes, ""))
        else:
            rows.append((pattern, shapes, f"  N = {_numbers([n or 0 for n, _ in members])}"))
    return rows


def _numbers(numbers: list[int]) -> str:
    first, last = numbers[0], numbers[-1]
    if len(numbers) > 2 and numbers == list(range(first, last + 1)):
        return f"{first} to {last}"
    return ", ".join(map(str, numbers))


def _pattern(slot: Slot) -> tuple[str, int | None]:
    """The slot's id with its first layer number as N, a span's end counted from it."""
    prefix, number, rest = _numbered(slot.end)
    if slot.source == "output" or number is None:
        return slot.id if number is None else f"{prefix}N{rest}", number
    start_prefix, first, start_rest = _numbered(slot.start)
    if first is None or start_prefix != prefix:
        return slot.id, None
    later = f"+{number - first}" if number > first else ""
    return f"{prefix}N{start_rest}..{prefix}N{later}{rest}", first


def _numbered(path: str) -> tuple[str, int | None, str]:
    """What stands before the first step of ``path`` that is a number, the number, and the rest.

    A path that is a number and nothing else is no numbered layer of anything.
    """
    match = re.fullmatch(r"((?:[^.]*\.)*?)(\d+)(\..*)?", path)
    if match is None or path.isdigit():
        return path, None, ""
    return match[1], int(match[2]), match[3] or ""
