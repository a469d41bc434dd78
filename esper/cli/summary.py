"""The end of a training: what was gained, where the log is, what to type next."""

from __future__ import annotations

import math
import shlex
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from esper.cli.view import Terminal
from esper.tolaria.observer import Grown, Outcome


def as_dict(outcome: Grown) -> dict[str, Any]:
    """The object that ``--json`` prints; accuracies in percent, losses in nats, to four
    decimals."""
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
    for name, state in outcome.breakers.items():
        if state != "closed":
            console.print(f"circuit breaker {name}: {state}", markup=False)
    for command in _next(outcome):
        console.print(f"next: {command}", markup=False, soft_wrap=True)


def _table(outcome: Grown) -> Table:
    table = Table("model", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    of_text = outcome.data == "characters"
    loss_name = "bits per character" if of_text else "test loss"
    for column in ("parameters", "steps", loss_name, "test accuracy"):
        table.add_column(column, justify="right")
    rows = [("grown", outcome.parameters, outcome.test_loss, outcome.test_accuracy)]
    if isinstance(outcome, Outcome):
        host = (outcome.control_parameters, outcome.control_loss, outcome.control_accuracy)
        static = (outcome.static_parameters, outcome.static_loss, outcome.static_accuracy)
        rows = [("host alone", *host), *rows, ("grown shape from the start", *static)]
    for name, parameters, loss, accuracy in rows:
        figure = f"{bits(loss):.3f}" if of_text else f"{loss:.4f}"
        table.add_row(name, f"{parameters:,}", f"{outcome.steps:,}", figure, f"{accuracy:.2f} %")
    return table


def bits(nats: float) -> float:
    """A loss in nats as bits."""
    return nats / math.log(2.0)


def _verdict(outcome: Grown) -> list[str]:
    if not isinstance(outcome, Outcome):
        return []
    if outcome.fossils == 0:
        return ["Nothing that was tried earned its place: the model kept its shape."]
    if outcome.data == "characters":
        gain = f"{bits(outcome.test_loss - outcome.control_loss):+.3f}"
        against = f"{bits(outcome.test_loss - outcome.static_loss):+.3f}"
        what, unit = "bits per character", ""
    else:
        gain = f"{outcome.test_accuracy - outcome.control_accuracy:+.2f}"
        against = f"{outcome.test_accuracy - outcome.static_accuracy:+.2f}"
        what, unit = "test accuracy", " points"
    return [
        (
            f"Growing changed the {what} by {gain}{unit} against the host alone, "
            f"{against} against the same shape from the start."
        )
    ]


def _next(outcome: Grown) -> list[str]:
    directory = shlex.quote(outcome.run_dir)
    commands = [f"esper show {directory}", f"esper verify {directory}"]
    if outcome.behind:
        commands.append(f"esper repair {directory}   (the server lacks {outcome.behind} segments)")
    return commands
