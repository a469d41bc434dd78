"""``esper audit``: runs in a database, to be queried with SQL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esper.cli.failures import (
    GOOD,
    VERIFICATION_FAILED,
    NotWholeError,
    RunFailedError,
    UserError,
    reading,
)
from esper.cli.following import arrivals, check_followed, follow_option
from esper.cli.options import key_option
from esper.cli.table import aligned
from esper_events.terminal import printable

if TYPE_CHECKING:
    from esper.projections.queries.database import Connection
    from esper.projections.queries.update import Taken
    from esper_events.chain import ChainVerifier
    from esper_events.keys import PublicKey

Run = dict[str, Any]
Answer = tuple[list[str], list[tuple[Any, ...]]]


@click.command(
    short_help="Put runs into a database and query it.",
    epilog='Example:  esper audit runs/* --query "SELECT log, seed, stage FROM seeds"',
)
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path), metavar="[RUN]...")
@click.option(
    "--database",
    "target",
    metavar="FILE|URL",
    default="audit.db",
    show_default=True,
    help="A file of SQLite, or postgresql://...",
)
@click.option("--query", metavar="SQL", help="Then print what a query finds; it can only read.")
@key_option
@follow_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def audit(
    paths: tuple[Path, ...],
    target: str,
    query: str | None,
    key_file: Path | None,
    follow: bool,
    as_json: bool,
) -> int:
    """Put what runs tell into a database (run directories or exported files), or query it.

    Each log is verified whole first, and only its new events are written. Views for a start: runs,
    seeds, stages, decisions, gates, trials, digests, events (docs/audit.md).

    Exit code 1: a log is damaged or missing, or not the one that the database knows.
    """
    from esper_events.command import trusted_key

    if not paths and query is None:
        raise click.UsageError("wanted a run to put into the database, or --query")
    if follow and len(paths) != 1:
        raise click.UsageError("--follow: wanted one run")
    if follow:
        check_followed(paths[0])
    trusted = trusted_key(key_file)
    take = _take_on if follow else _take
    runs, code = _take_all(take, paths, target, trusted, as_json) if paths else ([], GOOD)
    answer = None if query is None else _ask(target, query)
    if as_json:
        click.echo(json.dumps({"runs": runs, **_as_dict(answer)}))
    elif answer is not None:
        _print(answer)
    return code


def _take_all(
    take: Callable[[Connection, Path, PublicKey | None], Iterator[Run]],
    paths: tuple[Path, ...],
    target: str,
    trusted: PublicKey | None,
    quiet: bool,
) -> tuple[list[Run], int]:
    """What was taken in, and the exit code: one bad log does not keep the others out."""
    runs: dict[Path, Run] = {}
    code = GOOD
    with _database(target) as database:
        for path in paths:
            try:
                for run in _safely(path, take(database, path, trusted)):
                    if not quiet:
                        _tell(database.name, run, again=path in runs)
                    runs[path] = run
            except NotWholeError as error:
                error.show()
                code = VERIFICATION_FAILED
    return list(runs.values()), code


def _safely(path: Path, runs: Iterator[Run]) -> Iterator[Run]:
    from esper.projections.lattice import ProjectionError
    from esper.projections.queries.rows import RowError
    from esper.projections.queries.update import PositionError

    try:
        with reading(path):
            yield from runs
    except (PositionError, ProjectionError, RowError) as error:
        raise NotWholeError(path, error) from error


def _take(database: Connection, path: Path, trusted: PublicKey | None) -> Iterator[Run]:
    """The whole log, at once."""
    from esper.projections.queries.update import Intake
    from esper_events.reader import LogReader

    reader = LogReader(path, trusted)
    intake = Intake(database, str(path), reader, trusted is not None)
    yield _run(path, reader.verifier, intake.take(reader.records()))


def _take_on(database: Connection, path: Path, trusted: PublicKey | None) -> Iterator[Run]:
    """The log as far as it goes, and what comes."""
    from esper.projections.queries.update import Intake
    from esper_events.follow import LogFollower

    log = LogFollower(path, trusted)
    intake = Intake(database, str(path), log, trusted is not None)
    for records in arrivals(log):
        taken = intake.take(records)
        if taken.new:
            yield _run(path, log.verifier, taken)


def _ask(target: str, query: str) -> Answer:
    from esper.projections.queries.database import QueryError, is_url

    if not is_url(target) and not Path(target).exists():
        raise UserError(f"{target} does not exist; esper audit RUN makes it")
    try:
        with _database(target, read_only=True) as database:
            return database.select(query)
    except QueryError as error:
        raise UserError(f"--query: {error}") from error


@contextmanager
def _database(target: str, read_only: bool = False) -> Iterator[Connection]:
    from esper.projections.queries.database import DatabaseError, WrongDatabaseError, database

    try:
        with database(target, read_only=read_only) as connection:
            yield connection
    except WrongDatabaseError as error:
        raise UserError(f"--database: {error}") from error
    except DatabaseError as error:
        raise RunFailedError(f"--database: {error}") from error


def _run(path: Path, verifier: ChainVerifier, taken: Taken) -> Run:
    return {
        "path": str(path),
        "log": verifier.log,
        "events": taken.events,
        "new": taken.new,
        "rebuilt": taken.rebuilt,
        "head": verifier.head.hex(),
        "key": verifier.key.fingerprint if verifier.key else "",
        "key_pinned": taken.pinned,
        "ended": verifier.ended,
    }


def _tell(database: str, run: Run, *, again: bool) -> None:
    anew = ", all written anew for this version of Esper" if run["rebuilt"] else ""
    told = (
        f"{run['path']}: {run['events']} events of log {run['log']} in {database}, "
        f"{run['new']} of them new{anew}"
    )
    click.echo(printable(told))
    if not again:
        source = "" if run["key_pinned"] else " (as the log itself has it: compare, or name --key)"
        click.echo(f"  signed by {run['key']}{source}")
    click.echo(f"  verified up to head {run['head']}")


def _as_dict(answer: Answer | None) -> dict[str, Any]:
    from esper.projections.canonical import as_json

    if answer is None:
        return {}
    return {"columns": answer[0], "rows": as_json(answer[1])}


def _print(answer: Answer) -> None:
    """The rows below the names of their columns, aligned."""
    names, rows = answer
    for line in aligned([names, *([_cell(value) for value in row] for row in rows)]):
        click.echo(line)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return printable(json.dumps(value) if isinstance(value, dict | list) else str(value))
