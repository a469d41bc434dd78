"""A database of audited runs: SQLite in a file, PostgreSQL where its URL is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from esper.projections.queries import schema
from esper.projections.queries.rows import Value


class DatabaseError(Exception):
    """A database that cannot be reached, read or written; the message says why."""


class WrongDatabaseError(Exception):
    """A database that is none of audited runs, or one of another schema."""


class QueryError(Exception):
    """A query that the database does not answer, one that would change it among them."""


class Connection(Protocol):
    """What differs between the two. Every error of a driver leaves it as ``DatabaseError``."""

    name: str
    """The database for people; no password in it."""

    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing, one writer at a time; rolled back when the block raises."""
        ...

    def execute(self, statement: str, values: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        """Execute one statement with ``?`` for each value; its rows."""
        ...

    def insert(self, table: str, rows: Sequence[Sequence[Value]]) -> None:
        """Add rows, at least one, with a value for each column."""
        ...

    def tables(self) -> set[str]:
        """Names of the tables that are there."""
        ...

    def select(self, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Names of the columns and the rows of one query, which can change nothing.

        Raises:
            QueryError: it is none.
        """
        ...

    def close(self) -> None:
        """Let the database go."""
        ...


@contextmanager
def database(target: str, *, read_only: bool = False) -> Iterator[Connection]:
    """The database ``target``, a file or a URL, made where it is not there unless ``read_only``.

    Raises:
        DatabaseError: it cannot be reached, or the driver for it is not installed.
        WrongDatabaseError: it holds something else.
    """
    connection = _connect(target, read_only)
    try:
        if read_only:
            _check(connection)
        else:
            with connection.transaction():
                _prepare(connection)
        yield connection
    finally:
        connection.close()


def is_url(target: str) -> bool:
    """Whether ``target`` names a PostgreSQL database, not a file."""
    return target.startswith(("postgresql://", "postgres://"))


def _connect(target: str, read_only: bool) -> Connection:
    if is_url(target):
        from esper.projections.queries.postgres import PostgreSQL

        return PostgreSQL(target)
    from esper.projections.queries.sqlite import SQLite

    return SQLite(target, read_only)


def _prepare(connection: Connection) -> None:
    if connection.tables():
        _check(connection)
        return
    for statement in schema.definitions():
        connection.execute(statement)


def _check(connection: Connection) -> None:
    if "esper_audit" not in connection.tables():
        raise WrongDatabaseError(
            f"{connection.name} holds no audited runs; name one that `esper audit RUN` has made"
        )
    found = connection.execute("SELECT schema_version FROM esper_audit")
    if found != [(schema.SCHEMA,)]:
        raise WrongDatabaseError(
            f"{connection.name} was made by another version of Esper (schema {found}, wanted "
            f"{schema.SCHEMA}); make a new one from the runs"
        )
