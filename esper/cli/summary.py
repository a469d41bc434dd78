"""The end of a training: what was gained, where the log is, what to type next."""

from __future__ import annotations

import shlex
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from esper.cli.view import Terminal
from esper.tolaria.observer import Grown, Outcome


def as_dict(outcome: Grown) -> dict[str, Any]:
    """The object that ``--json`` prints; accuracies in percent, to four decimals."""
    fields = msgspec.structs.asdict(outcome)
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in fields.items()
    }


def print_summary(outcome: Grown, console: Console | None = None) -> None:
    """The table of the models and the next commands, on standard output."""
    console = console or Terminal(highlight=False)
    console.print()
    console.print(_table(outcome))
    for line in _verdict(outcome):
        console.print(line, markup=False, soft_wrap=True)
    console.print()
    console.print(
        f"log: {outcome.run_dir} ({outcome.events} events in {outcome.segments} segments, "
        f"head {outcome.head[:16]})",
        markup=False,
        soft_wrap=True,
    )
    for command in _next(outcome):
        console.print(f"next: {command}", markup=False, soft_wrap=True)


def _table(outcome: Grown) -> Table:
    table = Table("model", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in ("parameters", "steps", "test accuracy"):
        table.add_column(column, justify="right")
    rows = [("grown", outcome.parameters, outcome.test_accuracy)]
    if isinstance(outcome, Outcome):
        rows = [
            ("host alone", outcome.control_parameters, outcome.control_accuracy),
            *rows,
            ("grown shape from the start", outcome.static_parameters, outcome.static_accuracy),
        ]
    for name, parameters, accuracy in rows:
        table.add_row(name, f"{parameters:,}", f"{outcome.steps:,}", f"{accuracy:.2f} %")
    return table


def _verdict(outcome: Grown) -> list[str]:
    if not isinstance(outcome, Outcome):
        return []
    if outcome.parameters == outcome.control_parameters:
        return ["Nothing that was tried earned its place: the model kept its shape."]
    gain = outcome.test_accuracy - outcome.control_accuracy
    against = outcome.test_accuracy - outcome.static_accuracy
    return [
        (
            f"Growing changed the test accuracy by {gain:+.2f} points against the host alone, "
            f"{against:+.2f} against the same shape from the start."
        )
    ]


def _next(outcome: Grown) -> list[str]:
    directory = shlex.quote(outcome.run_dir)
    commands = [f"esper show {directory}", f"esper verify {directory}"]
    if outcome.behind:
        commands.append(f"esper repair {directory}   (the server lacks {outcome.behind} segments)")
    return commands
