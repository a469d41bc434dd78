"""Processes that write an audit database and are killed, or race."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from esper.projections.queries import update
from esper.projections.queries.database import database
from esper.projections.queries.postgres import PostgreSQL
from esper.projections.queries.sqlite import SQLite
from support.audited import SIZES, STORY, Dump, ask, dump, emptied, take
from support.histories import write_log


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


def test_many_at_once_write_each_event_once(target: str, run: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda _: take(target, run), range(4)))
    assert sorted(one.new for one in taken) == [0, 0, 0, len(STORY)]
    fresh = str(tmp_path / "fresh.db")
    take(fresh, run)
    assert dump(target) == dump(fresh)
