"""Audited runs in a SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from esper.projections.queries.database import DatabaseError, QueryError, WrongDatabaseError
from esper.projections.queries.rows import Value

_BUSY_SECONDS = 30.0
_READING = frozenset(
    {
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_FUNCTION,
        sqlite3.SQLITE_RECURSIVE,
    }
)


class SQLite:
    """The file at ``name``.

    Raises:
        DatabaseError: it cannot be opened.
    """

    def __init__(self, name: str, read_only: bool = False) -> None:
        self.name = name
        # Not "ro": what a writer that was killed has left can then not be rolled back.
        uri = f"{Path(name).absolute().as_uri()}?mode={'rw' if read_only else 'rwc'}"
        with self._driver():
            self._connection = sqlite3.connect(
                uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None
            )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; other writers wait."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            # Some failures, of a full disk for one, have rolled back already.
            if self._connection.in_transaction:
                self.execute("ROLLBACK")
            raise

    def execute(self, statement: str, values: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        """Execute one statement with ``?`` for each value; its rows."""
        with self._driver():
            return self._connection.execute(_spelt(statement), values).fetchall()

    def insert(self, table: str, rows: Sequence[Sequence[Value]]) -> None:
        """Add rows, at least one, with a value for each column."""
        places = ", ".join("?" * len(rows[0]))
        with self._driver():
            self._connection.executemany(f"INSERT INTO {table} VALUES ({places})", rows)

    def tables(self) -> set[str]:
        """Names of the tables that are there."""
        return {name for (name,) in self.execute("SELECT name FROM sqlite_master")}

    def select(self, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Names of the columns and the rows of one query, which can change nothing."""
        self._connection.set_authorizer(_may_read)
        try:
            cursor = self._connection.execute(query)
            rows = cursor.fetchall()
        except (sqlite3.Error, sqlite3.Warning, UnicodeEncodeError) as error:
            raise QueryError(str(error)) from error
        finally:
            self._connection.set_authorizer(None)
        if cursor.description is None:
            raise QueryError("the query is empty")
        return [column[0] for column in cursor.description], rows

    def close(self) -> None:
        """Let the file go."""
        self._connection.close()

    @contextmanager
    def _driver(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
                raise WrongDatabaseError(f"{self.name} is no database of SQLite") from error
            raise DatabaseError(f"{self.name}: {error}") from error


def _may_read(action: int, *_names: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY


def _spelt(statement: str) -> str:
    """SQLite keeps JSON as text."""
    return statement.replace("JSONB", "TEXT")
