"""What a person sees while a run trains: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from esper.cli.story import Story
from esper.tolaria.observer import Observer, Part, SeedRow
from esper_events.events import Record
from esper_events.terminal import silence

_SEED_ROWS = 8
_STYLES = {"training": "cyan", "grafting": "yellow", "fossilized": "green", "culled": "red"}


@contextmanager
def watching(to_stderr: bool) -> Iterator[Observer]:
    """The observer that fits where output goes; nothing is left drawing when the block ends."""
    console = Terminal(stderr=to_stderr, highlight=False)
    with _warnings_on(console):
        if not console.is_terminal or console.is_dumb_terminal:
            yield PlainView(console)
            return
        view = LiveView(console)
        with view.live:
            yield view


class Terminal(Console):
    """A console whose reader may leave (``| head``): training goes on, and nothing more is told."""

    def on_broken_pipe(self) -> None:
        """Fall silent, where rich would end the process."""
        self.quiet = True
        silence(self.file)


class _Warnings(logging.Handler):
    """Warnings of Esper's own as lines that do not tear the live view."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        self._console.print(Text(f"warning: {record.getMessage()}"), soft_wrap=True)


@contextmanager
def _warnings_on(console: Console) -> Iterator[None]:
    logger, handler = logging.getLogger("esper"), _Warnings(console)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class PlainView:
    """Lines for a file or a pipe: each thing that happens, and progress at every tenth."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._story = Story()
        self._told = 0
        self._troubles = ""

    def part(self, name: Part, steps: int) -> None:
        """A line for the training that begins."""
        self._told = 0
        self._line(f"== {name}: {steps} steps")

    def resumed(self, step: int) -> None:
        """A line that says from where."""
        self._line(_resumed(step))

    def progress(self, step: int, steps: int, loss: float, accuracy: float | None) -> None:
        """A line at every tenth of the way."""
        tenth = step * 10 // max(steps, 1)
        if tenth > self._told:
            self._told = tenth
            self._line(f"{f'step {step}':<10} {_figures(loss, accuracy)}")

    def event(self, record: Record) -> None:
        """A line for what changed the model or was judged."""
        line = self._story.tell(record)
        if line is not None:
            self._line(line)

    def seeds(self, rows: Sequence[SeedRow]) -> None:
        """Nothing: the transitions say it."""

    def breakers(self, states: Mapping[str, str]) -> None:
        """A line when one is not closed, or all are again."""
        troubles = _troubles(states)
        if troubles != self._troubles:
            self._troubles = troubles
            self._line(troubles or "all circuit breakers are closed again")

    def _line(self, text: str) -> None:
        try:
            print(text, file=self._console.file, flush=True)
        except BrokenPipeError:
            self._console.on_broken_pipe()


class LiveView:
    """Progress bars, loss and accuracy, the seeds in their slots; events scroll above them.

    The training thread only stores what it is told; drawing happens on rich's thread.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._story = Story()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
        )
        self._task = self._progress.add_task("loading torch", total=None)
        self._figures = ""
        self._troubles = ""
        self._rows: tuple[SeedRow, ...] = ()
        self.live = Live(
            get_renderable=self._draw, console=console, refresh_per_second=5, transient=False
        )

    def part(self, name: Part, steps: int) -> None:
        """A bar for the training that begins."""
        if self._progress.tasks[-1].total is None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(name, total=steps)

    def resumed(self, step: int) -> None:
        """A line that says from where."""
        self._console.print(Text(_resumed(step)))

    def progress(self, step: int, steps: int, loss: float, accuracy: float | None) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=step, total=steps)
        self._figures = _figures(loss, accuracy)

    def event(self, record: Record) -> None:
        """A line above the bars for what changed the model or was judged."""
        line = self._story.tell(record)
        if line is not None:
            self._console.print(Text(line), soft_wrap=False)

    def seeds(self, rows: Sequence[SeedRow]) -> None:
        """The table of seeds, the latest at its end."""
        self._rows = tuple(rows)

    def breakers(self, states: Mapping[str, str]) -> None:
        """A line under the figures, as long as one is not closed."""
        self._troubles = _troubles(states)

    def _draw(self) -> RenderableType:
        rows = self._rows
        parts: list[RenderableType] = [self._progress, Text(self._figures)]
        if self._troubles:
            parts.append(Text(self._troubles, style="yellow"))
        return Group(*parts, seed_table(rows)) if rows else Group(*parts)


def seed_table(rows: Sequence[SeedRow]) -> Table:
    """The newest seeds, one row each; says how many older ones it leaves out."""
    older = len(rows) - _SEED_ROWS
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in ("seed", "slot", "blueprint", "stage"):
        table.add_column(column, no_wrap=True)
    for column in ("alpha", "params", "gain"):
        table.add_column(column, justify="right")
    for row in rows[-_SEED_ROWS:]:
        table.add_row(
            str(row.seed),
            Text(row.slot),
            Text(row.blueprint),
            Text(
                "folded" if row.folded else row.stage.value, style=_STYLES.get(row.stage.value, "")
            ),
            f"{row.alpha:.2f}",
            f"{row.parameters:,}",
            "" if row.gain is None else f"{100 * row.gain:+.1f} %",
        )
    if older > 0:
        table.caption = f"and {older} older"
    return table


def _troubles(states: Mapping[str, str]) -> str:
    """The circuit breakers that are not closed; empty where all are."""
    waits = {"log": "growth waits, training goes on"}
    return "; ".join(
        f"circuit breaker {name} {state}" + (f": {waits[name]}" if name in waits else "")
        for name, state in states.items()
        if state != "closed"
    )


def _resumed(step: int) -> str:
    return f"goes on from the checkpoint of step {step}" if step else "goes on from its start"


def _figures(loss: float, accuracy: float | None) -> str:
    seen = "" if accuracy is None else f"  held-out {accuracy:.1f} %"
    return f"loss {loss:.4f}{seen}"
