"""A blueprint's graph as lines of text: a rail for each value that is still needed."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from esper.blueprints.ir import Blueprint, Node, Size, operands
from esper.blueprints.shapes import Step

_GAP = 2
"""Columns of text from one rail to the next."""


def draw(blueprint: Blueprint, steps: tuple[Step, ...] = ()) -> list[str]:
    """One line for what goes in and one for each node, with what it is, and lines where rails part.

    ``steps`` are the nodes resolved for a slot: given, each tells its shape and its parameters.
    """
    rails = _Rails(_last_uses(blueprint))
    rows = [(rails.begin(), "in", "")]
    for number, node in enumerate(blueprint.nodes, 1):
        read = list(dict.fromkeys(operands(node)))
        column, branch = rails.place(number, read[0])
        if branch:
            rows.append((branch, "", ""))
        told = _told(steps[number - 1]) if steps else ""
        rows.append((rails.node(number, column, read[1:]), _words(node), told))
    left = max(len(line) for line, _, _ in rows) + 2
    middle = max(len(words) for _, words, _ in rows) + 2
    return [f"{line:<{left}}{words:<{middle}}{told}".rstrip() for line, words, told in rows]


@dataclass
class _Rails:
    """Which value runs down which rail, and until which node."""

    until: dict[int, int]
    columns: list[int | None] = field(default_factory=list)

    def begin(self) -> str:
        self.columns = [0]
        return "○"

    def place(self, number: int, source: int) -> tuple[int, str]:
        """The rail of node ``number``, which reads ``source``; the line where it parts from that,
        if another node reads it later."""
        start = self.columns.index(source)
        if self.until[source] <= number:
            return start, ""
        free = (i for i, value in enumerate(self.columns) if value is None and i > start)
        column = next(free, len(self.columns))
        if column == len(self.columns):
            self.columns.append(None)
        return column, self._line({start: "├", column: "╮"}, start, column)

    def node(self, number: int, column: int, others: list[int]) -> str:
        """The line of node ``number`` on its rail, joined by those of the other values it reads."""
        marks, reach = {column: "●"}, [column]
        for value in others:
            rail = self.columns.index(value)
            ends = self.until[value] <= number
            marks[rail] = ("╯" if ends else "┤") if rail > column else ("╰" if ends else "├")
            reach.append(rail)
        line = self._line(marks, min(reach), max(reach))
        ended = (value for value in self.columns if value is not None)
        gone = {value for value in ended if self.until[value] <= number}
        self.columns = [None if value in gone else value for value in self.columns]
        self.columns[column] = number
        while self.columns[-1] is None:
            self.columns.pop()
        return line

    def _line(self, marks: dict[int, str], first: int, last: int) -> str:
        text = ""
        for rail, value in enumerate(self.columns):
            crossed = first < rail < last
            empty = "─" if crossed else " "
            plain = empty if value is None else "┼" if crossed else "│"
            text += marks.get(rail, plain) + ("─" if first <= rail < last else " ") * (_GAP - 1)
        return text.rstrip()


def _last_uses(blueprint: Blueprint) -> dict[int, int]:
    """For each value the number of the last node that reads it; the result is read at the end."""
    count = len(blueprint.nodes)
    uses = dict.fromkeys(range(count + 1), 0) | {count: count + 1}
    for number, node in enumerate(blueprint.nodes, 1):
        uses |= dict.fromkeys(operands(node), number)
    return uses


def _words(node: Node) -> str:
    """The operation with its settings, but for those that are as they always are."""
    fields = msgspec.structs.fields(type(node))
    said = [
        f"{f.name} {_value(value)}"
        for f in fields
        if f.name not in ("x", "y") and (value := getattr(node, f.name)) != f.default
    ]
    return ", ".join([str(type(node).__struct_config__.tag), *said])


def _value(value: object) -> str:
    if not isinstance(value, Size):
        return str(value)
    base = "" if value.of == "one" else value.of
    text = f"{value.times if value.times > 1 or not base else ''} {base}".strip()
    text += f"/{value.over}" if value.over > 1 else ""
    return f"{text} (at least {value.least})" if value.least > 1 else text


def _told(step: Step) -> str:
    shape = " x ".join(map(str, step.value.shape))
    count = f"{step.parameters:,} parameters" if step.parameters else ""
    return f"{step.value.kind} {shape}  {count}".rstrip()
