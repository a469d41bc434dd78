"""The audit database, in SQLite and in a real PostgreSQL server."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import given, settings

from esper.projections.catalogue import AUDIT
from esper.projections.queries import tables, update
from esper.projections.queries.database import (
    DatabaseError,
    QueryError,
    WrongDatabaseError,
    database,
)
from esper.projections.queries.postgres import PostgreSQL
from esper.projections.queries.sqlite import SQLite
from esper.projections.queries.tables import RowError
from esper.projections.queries.update import Intake, PositionError, Taken
from esper_events.checkpoint import CHECKPOINT
from esper_events.errors import ChainError
from esper_events.events import (
    CheckpointWritten,
    Event,
    GateMeasured,
    Record,
    TransitionLapsed,
    TrialMeasured,
    WeightsRecorded,
)
from esper_events.follow import LogFollower
from esper_events.framing import JOURNAL, frame
from esper_events.keys import PublicKey
from esper_events.reader import LogReader
from esper_events.stages import Gate, Stage
from support import postgres
from support.command import ROOT
from support.event_runs import (
    BLUEPRINT,
    LOG,
    UP,
    applied,
    blueprint,
    decided,
    ended,
    folded,
    lattice,
    make_run,
    seal_all,
    started,
)
from support.histories import KEY, histories, write_log

VIEWS = ("decisions", "stages", "seeds")
UNTOLD = {"decided", "settled", "blueprints"}
"""Tables that the guide leaves to its views."""

Dump = dict[str, list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "audit.db")
    return emptied(request.getfixturevalue("server"))


def emptied(url: str) -> str:
    with psycopg.connect(url) as connection:
        connection.execute("DROP SCHEMA IF EXISTS esper_audit CASCADE")
    return url


def trial(step: int, gain: float) -> TrialMeasured:
    figures = {"gain": gain, "error": 0.01, "shadow_steps": 10.0}
    return TrialMeasured(time=2.5, step=step, seed=1, figures=figures)


def story() -> list[Event]:
    """A seed's life to its end as a folded fossil; a second one, whose second decision lapses."""
    gate = GateMeasured(
        time=2.6, step=11, seed=1, gate=Gate.FORK, passed=True, reason="better",
        figures={"gain": 0.5, "lower": 0.25, "drift": math.nan},
    )  # fmt: skip
    events: list[Event] = [started(KEY), lattice("fc"), blueprint()]
    for number, (source, goal) in enumerate(pairwise(UP)):
        events += [decided(number, source, goal), applied(number)]
    events += [trial(10, 0.125), trial(11, math.nan), gate, folded()]
    events += [
        decided(6, Stage.DORMANT, Stage.GERMINATED, seed=2, objective="next_layer"),
        applied(6),
        decided(7, Stage.GERMINATED, Stage.TRAINING, seed=2),
        TransitionLapsed(time=3.0, decision=7, step=12, reason="late"),
        decided(8, Stage.GERMINATED, Stage.TRAINING, seed=2),
        WeightsRecorded(time=3.0, step=12, tensors={"a": "da", "b": "db"}),
        CheckpointWritten(time=3.0, step=12, file="cf", weights="cw"),
        msgspec.structs.replace(ended(), outcome="failed", final_weights="fw", lattice="ll"),
    ]
    return events


STORY = [Record(index, event) for index, event in enumerate(story())]
SIZES = (3, 4, 1, 6, 2)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_log(tmp_path / "run", STORY, SIZES)


def take(target: str, run: Path, trusted: PublicKey | None = None) -> Taken:
    reader = LogReader(run, trusted)
    with database(target) as connection:
        intake = Intake(connection, "run", reader, trusted is not None)
        return intake.take(reader.records())


def ask(target: str, query: str) -> list[tuple[Any, ...]]:
    with database(target, read_only=True) as connection:
        return connection.select(query)[1]


def dump(target: str) -> Dump:
    """Every table and view in a form that both databases share."""
    with database(target) as connection:
        names = ["runs", *tables.TABLES, *VIEWS]
        return {name: sorted(map(_plain, connection.execute(f"SELECT * FROM {name}")), key=repr)
                for name in names}  # fmt: skip


def _plain(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """SQLite has JSON as text and truth as 0 and 1."""
    return tuple(int(v) if isinstance(v, bool) else _json(v) for v in row)


def _json(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    return json.dumps(_floats(value), sort_keys=True) if isinstance(value, dict) else value


def _floats(value: Any) -> Any:
    """PostgreSQL spells 1e16 as an integer."""
    if isinstance(value, dict):
        return {name: _floats(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_floats(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def test_the_row_of_a_run_says_by_which_key_and_up_to_which_head(target: str, run: Path) -> None:
    taken = take(target, run)
    assert taken == Taken(len(STORY), len(STORY), pinned=False, rebuilt=False)
    reader = LogReader(run)
    records = list(reader.records())
    columns = "log, verified_by, events, segments, head, checkpoint, audit, final_weights"
    assert ask(target, f"SELECT {columns} FROM runs") == [
        (
            LOG,
            KEY.public.fingerprint,
            len(records),
            len(SIZES) + 1,
            reader.verifier.head.hex(),
            len(records),
            AUDIT.fold_all(records).digest(),
            "fw",
        )
    ]
    assert ask(target, "SELECT ended, lattice_agrees, key_pinned FROM runs") == [(1, 0, 0)]


def test_what_an_auditor_asks(target: str, run: Path) -> None:
    take(target, run)
    assert ask(target, "SELECT seed, slot, name, objective, stage, step FROM seeds ORDER BY 1") == [
        (1, "fc", "b", "shadow", "fossilized", 11),
        (2, "fc", "b", "next_layer", "germinated", 11),
    ]
    stages = ask(target, "SELECT stage, step FROM stages WHERE seed = 1 ORDER BY event")
    assert stages == [(stage.value, 11) for stage in UP[1:]]
    assert ask(
        target,
        "SELECT decision, outcome, settled_step, settled_reason FROM decisions "
        "WHERE seed = 2 ORDER BY decision",
    ) == [(6, "applied", 11, None), (7, "lapsed", 12, "late"), (8, "open", None, None)]
    trials = ask(target, "SELECT step, seed, gain, error, shadow_steps FROM trials ORDER BY step")
    assert trials == [(10, 1, 0.125, 0.01, 10.0), (11, 1, None, 0.01, 10.0)]
    gates = ask(target, "SELECT gate, passed, reason, gain, lower FROM gates")
    assert gates == [("fork", 1, "better", 0.5, 0.25)]
    assert ask(target, "SELECT what, name, step FROM digests WHERE digest = 'db'") == [
        ("tensor", "b", 12)
    ]
    wanted = ("blueprint", "module after", "checkpoint weights", "final weights")
    for what, digest in zip(wanted, (BLUEPRINT, "after", "cw", "fw"), strict=True):
        found = ask(target, f"SELECT digest FROM digests WHERE what = '{what}'")
        assert found == [(digest,)]
    assert ask(target, "SELECT COUNT(*), MAX(segment) FROM events") == [(len(STORY), len(SIZES))]
    actors = ask(target, "SELECT DISTINCT actor FROM events")
    assert actors == [(KEY.public.fingerprint,)]
    assert ask(target, "SELECT body ->> 'reason' FROM events WHERE kind = 'gate.measured'") == [
        ("better",)
    ]


@settings(max_examples=12)
@given(records=histories())
def test_both_databases_hold_the_same(
    records: list[Record], server: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("history")
    run = write_log(directory / "run", records, (1, 2))
    file, url = str(directory / "audit.db"), emptied(server)
    take(file, run)
    take(url, run)
    held = dump(file)
    assert held == dump(url)
    assert len(held["events"]) == len(records)


def test_a_second_call_goes_on_from_where_the_first_ended(target: str, tmp_path: Path) -> None:
    ends = [sum(SIZES[:count]) for count in range(1, len(SIZES) + 1)]
    whole = write_log(tmp_path / "whole", STORY, SIZES)
    for start, end in zip([0, *ends], [*ends, len(STORY)], strict=True):
        run = write_log(tmp_path / "run", STORY[:end], SIZES)
        assert take(target, run).new == end - start
        assert take(target, run).new == 0
    fresh = str(tmp_path / "fresh.db")
    take(fresh, whole)
    assert dump(target) == dump(fresh)


def test_a_database_that_follows_a_growing_log_ends_like_one_made_afterwards(
    target: str, run: Path, tmp_path: Path
) -> None:
    fresh = str(tmp_path / "fresh.db")
    take(fresh, run)
    whole, new = (run / JOURNAL).read_bytes(), 0
    (run / CHECKPOINT).rename(run / "kept")
    with database(target) as connection:
        log = LogFollower(run)
        intake = Intake(connection, "run", log, False)
        for size in (*range(0, len(whole), 300), len(whole)):
            (run / JOURNAL).write_bytes(whole[:size])
            if size == len(whole):
                (run / "kept").rename(run / CHECKPOINT)
            new += intake.take(log.records()).new
    assert new == len(STORY)
    assert dump(target) == dump(fresh)


def test_the_guide_names_every_column_and_its_questions_are_answered(
    target: str, run: Path
) -> None:
    take(target, run)
    guide = (ROOT / "docs" / "audit.md").read_text()
    told: dict[str, list[str]] = {}
    for line in guide.splitlines():
        cells = line.split("|")
        if len(cells) > 2 and cells[2].strip().startswith("one row"):
            told[cells[1].strip(" `")] = names = []
        elif len(cells) > 2 and "`" in cells[1]:
            names += re.findall("`(.*?)`", cells[1])
    assert sorted(told) == sorted({"runs", *VIEWS, *tables.TABLES} - UNTOLD)
    with database(target, read_only=True) as connection:
        for table, columns in told.items():
            assert sorted(columns) == sorted(connection.select(f"SELECT * FROM {table}")[0])
        questions = guide.split("```sql")[1].split("```")[0].split(";")[:-1]
        answers = [connection.select(question)[1] for question in questions]
    assert [len(answer) for answer in answers] == [1, 1, 1, 0]


def test_a_process_killed_between_any_two_statements_has_changed_nothing_or_all(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "_BATCH", 8)
    fresh, empty = str(tmp_path / "fresh.db"), str(tmp_path / "empty.db")
    whole = write_log(tmp_path / "run", STORY, SIZES)
    take(fresh, whole)
    stages = [None, dump(empty), dump(fresh)]
    assert _killed_anywhere(target, whole, stages) > 15
    if not target.endswith(".db"):
        emptied(target)
    Path(target).unlink(missing_ok=True)
    take(target, write_log(tmp_path / "before", STORY[:8], SIZES))
    stages = [dump(target), dump(fresh)]
    assert _killed_anywhere(target, whole, stages) > 8


def test_a_query_rolls_back_what_a_killed_writer_left(run: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "audit.db")
    take(target, run)
    child = os.fork()
    if child == 0:
        with database(target) as connection, connection.transaction():
            rows = [("other", n, "b", "n" * 1000) for n in range(10_000)]
            connection.insert("blueprints", rows)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert Path(f"{target}-journal").stat().st_size > 0
    assert ask(target, "SELECT COUNT(*) FROM blueprints") == [(1,)]


def _killed_anywhere(target: str, run: Path, stages: list[Dump | None]) -> int:
    """Take the run in with a process killed at each of its statements, until one is through; how
    many it took. What it leaves is one of ``stages``, and never an earlier one than was seen."""
    for number in range(100):
        finished = _killed_at(number, lambda: take(target, run))
        held = _held(target)
        assert held in stages
        del stages[: stages.index(held)]
        if finished:
            break
    assert len(stages) == 1
    return number


def _held(target: str) -> Dump | None:
    connection = SQLite(target) if target.endswith(".db") else PostgreSQL(target)
    prepared = connection.tables()
    connection.close()
    return dump(target) if prepared else None


def _killed_at(number: int, act: Callable[[], object]) -> bool:
    """Do it in a process that is killed before its statement ``number``; whether it finished."""
    child = os.fork()
    if child == 0:
        left = number
        for kind in (SQLite, PostgreSQL):
            for name in ("execute", "insert"):
                real = getattr(kind, name)

                def counted(*arguments: Any, real: Any = real) -> Any:
                    nonlocal left
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1
                    return real(*arguments)

                setattr(kind, name, counted)
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


def test_many_at_once_write_each_event_once(target: str, run: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda _: take(target, run), range(4)))
    assert sorted(one.new for one in taken) == [0, 0, 0, len(STORY)]
    fresh = str(tmp_path / "fresh.db")
    take(fresh, run)
    assert dump(target) == dump(fresh)


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
        monkeypatch.setattr(tables, "SCHEMA", tables.SCHEMA + 1)
        with pytest.raises(WrongDatabaseError, match="made by another version of Esper"):
            take(target, run)

    def test_a_server_that_is_away_is_told_without_the_password(self, tmp_path: Path) -> None:
        url = f"postgresql://me:sesame@/postgres?host={tmp_path}"
        with pytest.raises(DatabaseError) as caught, database(url):
            pass
        assert "sesame" not in str(caught.value)
        with pytest.raises(DatabaseError), database(str(tmp_path / "nowhere" / "audit.db")):
            pass


def test_rows_of_other_code_are_written_anew(
    target: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tables, "tables_version", lambda: "older")
        take(target, write_log(tmp_path / "before", STORY[:8], SIZES))
    taken = take(target, run)
    assert (taken.rebuilt, taken.new) == (True, len(STORY))
    fresh = str(tmp_path / "fresh.db")
    take(fresh, run)
    assert dump(target) == dump(fresh)


def test_a_key_that_was_known_once_stays_so(target: str, run: Path) -> None:
    assert take(target, run, KEY.public).pinned
    assert take(target, run).pinned
    assert ask(target, "SELECT key_pinned FROM runs") == [(1,)]


def test_runs_stand_side_by_side(target: str, run: Path, tmp_path: Path) -> None:
    take(target, run)
    other = make_run(KEY, [[msgspec.structs.replace(started(KEY), run="other"), lattice("fc")]])
    journal = tmp_path / "other" / JOURNAL
    journal.parent.mkdir(parents=True)
    sealed = seal_all(KEY, other.groups, log="run-2")
    journal.write_bytes(b"".join(map(frame, sealed)))
    before = set(dump(target)["events"])
    assert take(target, tmp_path / "other").new == 2
    assert before < set(dump(target)["events"])
    assert ask(target, "SELECT log, run, events FROM runs ORDER BY log") == [
        (LOG, LOG, len(STORY)),
        ("run-2", "other", 2),
    ]


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
