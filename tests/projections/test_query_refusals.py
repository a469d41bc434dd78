"""What an audit database does not take, and queries that it does not answer."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import psycopg
import pytest

from esper.projections.queries import schema, update
from esper.projections.queries.database import (
    DatabaseError,
    QueryError,
    WrongDatabaseError,
    database,
)
from esper.projections.queries.rows import RowError
from esper.projections.queries.update import PositionError
from esper_events.errors import ChainError
from esper_events.events import Record
from esper_events.framing import JOURNAL, frame
from support.audited import SIZES, STORY, dump, emptied, take, trial
from support.event_runs import lattice, make_run, started
from support.histories import KEY, write_log


class TestRefusals:
    """What is not the log that the database knows, and what is none at all."""

    @pytest.fixture(autouse=True)
    def _each_row_is_written_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(update, "_BATCH", 1)

    def unchanged(self, target: str, run: Path, kind: type[Exception], match: str) -> None:
        before = dump(target)
        with pytest.raises(kind, match=match):
            take(target, run)
        assert dump(target) == before

    def test_another_history_under_the_same_name(self, target: str, tmp_path: Path) -> None:
        take(target, write_log(tmp_path / "run", STORY[:7], SIZES))
        again = [STORY[0], Record(1, lattice("fc", "head")), *STORY[2:]]
        other = write_log(tmp_path / "other", again, SIZES)
        self.unchanged(target, other, PositionError, "holds another history of log run-1")
        regrouped = write_log(tmp_path / "regrouped", STORY, (2, 5))
        self.unchanged(target, regrouped, PositionError, "holds another history of log run-1")

    def test_a_log_that_was_rolled_back(self, target: str, tmp_path: Path) -> None:
        take(target, write_log(tmp_path / "run", STORY, SIZES))
        back = write_log(tmp_path / "back", STORY[:8], SIZES)
        reason = f"holds {len(STORY)} events of log run-1, this holds 8: it was cut or rolled back"
        self.unchanged(target, back, PositionError, reason)

    def test_a_damaged_log_leaves_nothing_of_itself(self, target: str, tmp_path: Path) -> None:
        take(target, write_log(tmp_path / "run", STORY[:8], SIZES))
        journal = write_log(tmp_path / "damaged", STORY, SIZES) / JOURNAL
        journal.write_bytes(journal.read_bytes()[:-1])
        self.unchanged(target, tmp_path / "damaged", ChainError, "ends inside a segment")

    def test_a_log_that_its_checkpoint_does_not_bear_out(
        self, target: str, tmp_path: Path, run: Path
    ) -> None:
        take(target, write_log(tmp_path / "before", STORY[:8], SIZES))
        shorter = make_run(KEY, [[r.event for r in STORY[:3]], [r.event for r in STORY[3:7]]])
        (run / JOURNAL).write_bytes(b"".join(map(frame, shorter.segments)))
        self.unchanged(target, run, ChainError, "it was cut or rolled back")

    def test_a_number_that_no_database_holds(self, target: str, tmp_path: Path) -> None:
        big = [msgspec.structs.replace(started(KEY), seed=2**63), trial(2**63, 0.0)]
        for events in (big[:1], [started(KEY), big[1]]):
            run = write_log(tmp_path / "run", [Record(n, e) for n, e in enumerate(events)])
            with pytest.raises(RowError, match="more than a database holds"):
                take(target, run)
        assert dump(target)["events"] == []

    def test_a_database_of_something_else(self, server: str, tmp_path: Path, run: Path) -> None:
        other = tmp_path / "other.db"
        sqlite3.connect(other).execute("CREATE TABLE runs (x)")
        with pytest.raises(WrongDatabaseError, match="holds no audited runs"):
            take(str(other), run)
        (tmp_path / "text").write_text("no database at all, but a text of some length")
        with pytest.raises(WrongDatabaseError, match="is no database of SQLite"):
            take(str(tmp_path / "text"), run)
        with psycopg.connect(emptied(server)) as connection:
            connection.execute("CREATE SCHEMA esper_audit CREATE TABLE mine (x int)")
        with pytest.raises(WrongDatabaseError, match="holds no audited runs"):
            take(server, run)

    def test_another_schema(self, target: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        take(target, run)
        monkeypatch.setattr(schema, "SCHEMA", schema.SCHEMA + 1)
        with pytest.raises(WrongDatabaseError, match="made by another version of Esper"):
            take(target, run)

    def test_a_server_that_is_away_is_told_without_the_password(self, tmp_path: Path) -> None:
        url = f"postgresql://me:sesame@/postgres?host={tmp_path}"
        with pytest.raises(DatabaseError) as caught, database(url):
            pass
        assert "sesame" not in str(caught.value)
        with pytest.raises(DatabaseError), database(str(tmp_path / "nowhere" / "audit.db")):
            pass


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM events",
        "DROP TABLE events",
        "UPDATE runs SET head = ''",
        "SELECT 1; DELETE FROM events",
        "VACUUM INTO 'copy.db'",
        "ATTACH 'other.db' AS other",
        "COMMIT",
        "PRAGMA writable_schema = 1",
        "SET TRANSACTION READ WRITE",
        "WITH gone AS (DELETE FROM events RETURNING *) SELECT * FROM gone",
        "SELECT nothing FROM runs",
        "",
        "\ud800",
    ],
)
def test_a_query_can_only_read(
    target: str, run: Path, statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    take(target, run)
    before, files = dump(target), sorted(tmp_path.iterdir())
    for read_only in (True, False):
        with database(target, read_only=read_only) as connection, pytest.raises(QueryError):
            connection.select(statement)
    assert dump(target) == before
    assert sorted(tmp_path.iterdir()) == files
