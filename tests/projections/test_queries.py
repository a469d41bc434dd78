"""The audit database, in SQLite and in a real PostgreSQL server."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings

from esper.projections.catalogue import AUDIT
from esper.projections.queries import schema, update
from esper.projections.queries.database import database
from esper.projections.queries.rows import as_text
from esper.projections.queries.update import Intake, Taken
from esper_events.checkpoint import CHECKPOINT
from esper_events.events import Record
from esper_events.follow import LogFollower
from esper_events.framing import JOURNAL, frame
from esper_events.reader import LogReader
from support.audited import SIZES, STORY, VIEWS, ask, dump, emptied, take
from support.command import ROOT
from support.event_runs import BLUEPRINT, LOG, UP, lattice, make_run, seal_all, started
from support.histories import KEY, histories, write_log

UNTOLD = {"decided", "settled", "blueprints"}
"""Tables that the guide leaves to its views."""


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
    assert sorted(told) == sorted({"runs", *VIEWS, *schema.TABLES} - UNTOLD)
    with database(target, read_only=True) as connection:
        for table, columns in told.items():
            assert sorted(columns) == sorted(connection.select(f"SELECT * FROM {table}")[0])
        questions = guide.split("```sql")[1].split("```")[0].split(";")[:-1]
        answers = [connection.select(question)[1] for question in questions]
    assert [len(answer) for answer in answers] == [1, 1, 1, 0]


def test_rows_of_other_code_are_written_anew(
    target: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(update, "rows_version", lambda: "older")
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


def test_figures_are_as_every_database_has_them() -> None:
    """PostgreSQL's JSON knows neither a negative zero nor what is no number."""
    figures = {"gain": -0.0, "losses": [-0.0, float("nan"), float("-inf"), -1.5]}
    assert as_text(figures) == '{"gain": 0.0, "losses": [0.0, "nan", "-inf", -1.5]}'
