"""``esper diff``: where two histories part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esper.cli.failures import GOOD, VERIFICATION_FAILED, NotWholeError
from esper.cli.options import key_option
from esper_events.terminal import printable

if TYPE_CHECKING:
    from esper.projections.difference import Aftermath, Difference, FieldDifference, History
    from esper_events.events import Record
    from esper_events.keys import PublicKey
    from esper_events.reader import LogReader

_WIDTH = 60
_TOLD = 12
"""Fields that are told; ``--json`` has them all."""


@click.command(
    short_help="Find the first event where two histories part.",
    epilog="Example:  esper diff runs/seed-0 runs/seed-1",
)
@click.argument("a", type=click.Path(exists=True, path_type=Path), metavar="RUN_A")
@click.argument("b", type=click.Path(exists=True, path_type=Path), metavar="RUN_B")
@click.option("--exact", is_flag=True, help="Count every field: times, keys, names, config too.")
@key_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def diff(a: Path, b: Path, exact: bool, key_file: Path | None, as_json: bool) -> int:
    """Find the first event where the histories of two runs part (directories or exports).

    Both logs are verified first. How the runs began (seed, config, platform) is told apart; times,
    keys and names do not count, nor does what became of checkpoints and of the log's copy.

    Exit code 0: the same history. 1: another, or a log is damaged or missing.
    """
    from esper.projections.difference import compare
    from esper_events.command import trusted_key

    trusted = trusted_key(key_file)
    logs = [_Log(path, trusted) for path in (a, b)]
    found = compare(logs[0].history(), logs[1].history(), exact=exact)
    if as_json:
        click.echo(json.dumps(_as_dict(logs, found, exact)))
    else:
        for line in _words(logs, found):
            click.echo(printable(line))
    return GOOD if found.same else VERIFICATION_FAILED


class _Log:
    """A verified log, held whole."""

    def __init__(self, path: Path, trusted: PublicKey | None) -> None:
        from esper_events.errors import ChainError, cause
        from esper_events.reader import LogReader

        self.path = path
        self.records: list[Record] = []
        self.reader: LogReader = LogReader(path, trusted)
        try:
            for record in self.reader.records():
                self.records.append(record)
        except ChainError as error:
            raise NotWholeError(path, f"{error}{self._trusted()}") from error
        except OSError as error:
            raise NotWholeError(path, f"cannot be read: {cause(error)}{self._trusted()}") from error

    def history(self) -> History:
        """What the log tells."""
        from esper.projections.difference import History
        from esper.projections.lattice import ProjectionError

        try:
            return History(self.records)
        except ProjectionError as error:
            raise NotWholeError(self.path, error) from error

    def _trusted(self) -> str:
        """How far the log can be trusted, which was damaged after ``records``."""
        if not self.records:
            return "; nothing of it can be trusted"
        last = self.records[-1].index
        return f"; it can be trusted up to event {last} (esper show --all tells those)"


def _as_dict(logs: list[_Log], found: Difference, exact: bool) -> dict[str, Any]:
    from esper.projections.canonical import as_json

    told = as_json(found)
    parted = found.parted or (None, None)
    sides = {}
    for name, log, record, after in zip("ab", logs, parted, told.pop("after"), strict=True):
        verifier = log.reader.verifier
        sides[name] = {
            "path": str(log.path),
            "log": verifier.log,
            "events": verifier.events,
            "head": verifier.head.hex(),
            "key": verifier.key.fingerprint if verifier.key else "",
            "ended": verifier.ended,
            "parted": None if record is None else _record(record),
            "after": after,
        }
    del told["parted"]
    return {"exact": exact, **told, **sides}


def _record(record: Record) -> dict[str, Any]:
    from esper_events.words import describe

    kind = str(type(record.event).__struct_config__.tag)
    step = getattr(record.event, "step", None)
    words = describe(record).strip().partition("  ")[2]
    return {"index": record.index, "kind": kind, "step": step, "words": words}


def _words(logs: list[_Log], found: Difference) -> list[str]:
    a, b = (str(log.path) for log in logs)
    lines = [f"{a} and {b}: {_verdict(found)}"]
    if found.beginnings:
        lines.append("they begin differently:")
        lines += _fields(found.beginnings)
    if found.parted is not None:
        lines.append(f"events shared up to there: {found.shared}; the first that differ:")
        for log, record in zip(logs, found.parted, strict=True):
            lines.append(f"  {log.path}: {_place(log, record)}")
        lines += _fields(found.fields)
    if found.first_other is not None:
        since = "" if found.last_same is None else f", at step {found.last_same} still the same"
        lines.append(f"checkpoints hold other weights at step {found.first_other}{since}")
    if not found.same:
        lines += _afterwards(a, b, *found.after)
    return lines


def _verdict(found: Difference) -> str:
    if found.same:
        return f"the same history, {found.shared} events"
    if found.parted is None:
        return f"the same {found.shared} events, of other weights"
    return "their histories part"


def _place(log: _Log, record: Record | None) -> str:
    if record is None:
        return "has ended" if log.reader.verifier.ended else "goes no further, and has not ended"
    told = _record(record)
    return f"event {told['index']}, {told['words']}"


def _fields(fields: tuple[FieldDifference, ...]) -> list[str]:
    lines = [f"  {f.name}: {_short(f.a)} | {_short(f.b)}" for f in fields[:_TOLD]]
    more = len(fields) - _TOLD
    return [*lines, f"  and {more} more (--json has them)"] if more > 0 else lines


def _short(value: object) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."


def _afterwards(a: str, b: str, one: Aftermath, other: Aftermath) -> list[str]:
    """What differs in how the two went on, a line each."""
    left, right = _outline(one), _outline(other)
    names = [name for name in left | right if left.get(name) != right.get(name)]
    if not names:
        return []
    lines = [f"from there on ({a} | {b}):"]
    return lines + [f"  {name}: {left.get(name, '-')} | {right.get(name, '-')}" for name in names]


def _outline(after: Aftermath) -> dict[str, str]:
    settled = f"{after.applied} applied, {after.lapsed} lapsed"
    ended = "not ended" if after.step is None else f"{after.outcome} at step {after.step}"
    return {
        "events": str(after.events),
        "decisions": f"{after.decided} ({settled})",
        **{f"seeds that became {stage}": str(n) for stage, n in after.entered.items()},
        "kept": "; ".join(after.kept) or "nothing",
        "end": ended,
        **{name: f"{value:.6g}" for name, value in after.figures.items()},
        "lattice": after.lattice[:16],
        "final weights": after.final_weights[:16] or "-",
    }
