"""Audited runs in a schema of a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from esper.projections.queries.database import DatabaseError, QueryError
from esper.projections.queries.rows import Value

SCHEMA = "esper_audit"
"""The schema that the tables stand in."""

_WRITERS = 0x657370657261
"""Names the lock that a writer holds."""
_CONNECT_SECONDS = 10


class PostgreSQL:
    """The database at ``url``, as libpq spells it; also in the environment (``PGPASSWORD``).

    Raises:
        DatabaseError: it cannot be reached, or psycopg is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise DatabaseError(
                "PostgreSQL needs a driver: pip install 'esper-morph[postgres]'"
            ) from error
        self.name = _without_password(url)
        self._error = psycopg.Error
        with self._driver():
            self._connection = psycopg.connect(
                url, autocommit=True, connect_timeout=_CONNECT_SECONDS
            )
            self._connection.execute(f"SET search_path = {SCHEMA}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; other writers wait."""
        with self._driver(), self._connection.transaction():
            self.execute("SELECT pg_advisory_xact_lock(?)", (_WRITERS,))
            self.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
            yield

    def execute(self, statement: str, values: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        """Execute one statement with ``?`` for each value; its rows."""
        with self._driver():
            cursor = self._connection.execute(_spelt(statement), values)
            return cursor.fetchall() if cursor.description else []

    def insert(self, table: str, rows: Sequence[Sequence[Value]]) -> None:
        """Add rows, at least one, with a value for each column."""
        statement = f"COPY {table} FROM STDIN".encode()
        with (
            self._driver(),
            self._connection.cursor() as cursor,
            cursor.copy(statement) as copy,
        ):
            for row in rows:
                copy.write_row(row)

    def tables(self) -> set[str]:
        """Names of the tables that are there."""
        found = self.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = ?", (SCHEMA,)
        )
        return {name for (name,) in found}

    def select(self, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Names of the columns and the rows of one query, which can change nothing."""
        try:
            with self._connection.transaction():
                # Prepared, so that it is one statement.
                self._connection.execute("SET TRANSACTION READ ONLY")
                cursor = self._connection.execute(query, prepare=True)
                if cursor.description is None:
                    raise QueryError("the statement is no query")
                return [column.name for column in cursor.description], cursor.fetchall()
        except (self._error, UnicodeEncodeError) as error:
            raise QueryError(_first_line(error)) from error

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    @contextmanager
    def _driver(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise DatabaseError(f"{self.name}: {_first_line(error)}") from error


def _spelt(statement: str) -> bytes:
    return statement.replace("?", "%s").encode()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _without_password(url: str) -> str:
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg.errors import ProgrammingError

    try:
        parts = conninfo_to_dict(url)
    except ProgrammingError as error:
        raise DatabaseError("the database's URL cannot be read") from error
    shown = {name: value for name, value in parts.items() if "password" not in name}
    return f"PostgreSQL ({make_conninfo('', **shown)})"
