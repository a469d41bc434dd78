"""``esper audit``, and what follows a run while it is written."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from esper.cli import failures
from esper.cli.main import esper as group
from esper_events.checkpoint import write_checkpoint
from esper_events.export import export_run
from esper_events.framing import JOURNAL, frame
from esper_events.keys import SigningKey
from support.event_runs import Run, ended, lattice, make_run, opening, started
from support.histories import KEY

RUN = make_run(KEY, (*opening(KEY), (ended(),)))


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with the run ``run`` in it."""
    monkeypatch.chdir(tmp_path)
    RUN.write(tmp_path / "run")
    return tmp_path


def audit(*arguments: str) -> int:
    return failures.run(group, ["audit", *arguments])


@contextmanager
def growing(run: Run, directory: Path) -> Iterator[None]:
    """A run whose first segment is there, and the others come while the block goes on."""
    journal = directory / JOURNAL
    journal.parent.mkdir(parents=True)
    first, *rest = map(frame, run.segments)
    journal.write_bytes(first)

    def write() -> None:
        for data in rest:
            for part in (data[:10], data[10:]):
                time.sleep(0.1)
                with journal.open("ab") as file:
                    file.write(part)
        write_checkpoint(directory, run.note)

    thread = threading.Thread(target=write)
    thread.start()
    yield
    thread.join()


def test_a_run_is_put_into_a_database_and_asked(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    KEY.public.save(directory / "trainer.pub")
    assert audit("run") == failures.GOOD
    head = RUN.verifier().head.hex()
    name = KEY.public.fingerprint
    assert capsys.readouterr().out.splitlines() == [
        "run: 7 events of log run-1 in audit.db, 7 of them new",
        f"  signed by {name} (as the log itself has it: compare, or name --key)",
        f"  verified up to head {head}",
    ]
    export_run(directory / "run", directory / "run.esper")
    query = "SELECT seed, slot, stage, step, NULL AS left_blank FROM seeds"
    assert audit("run.esper", "--key", "trainer.pub", "--query", query) == failures.GOOD
    assert capsys.readouterr().out.splitlines() == [
        "run.esper: 7 events of log run-1 in audit.db, 0 of them new",
        f"  signed by {name}",
        f"  verified up to head {head}",
        "seed  slot  stage       step  left_blank",
        "1     fc    germinated  11",
    ]


def test_the_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    query = "SELECT kind, step, 1e999 AS huge FROM events WHERE step > 11"
    assert audit("run", "--json", "--query", query) == failures.GOOD
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["columns"] == ["kind", "step", "huge"]
    assert told["rows"] == [["run.ended", 20, "inf"]]
    (run,) = told["runs"]
    assert (run["path"], run["events"], run["new"], run["ended"]) == ("run", 7, 7, True)
    assert run["key_pinned"] is False


def test_a_bad_log_does_not_keep_the_others_out(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = RUN.write(directory / "damaged")
    journal.write_bytes(journal.read_bytes()[:-1])
    other = make_run(KEY, ((started(KEY), lattice("other")),))
    other.write(directory / "other")
    assert audit("damaged", "run", "other") == failures.VERIFICATION_FAILED
    told = capsys.readouterr()
    assert told.out.startswith("run: 7 events")
    damaged, other_line = told.err.splitlines()
    assert damaged.startswith("esper: damaged: FAILED: segment 2, byte ")
    assert other_line.startswith("esper: other: FAILED: audit.db holds ")
    assert audit("--query", "SELECT COUNT(*) FROM events") == failures.GOOD
    assert capsys.readouterr().out.splitlines() == ["COUNT(*)", "7"]


def test_another_key_than_the_trainers(directory: Path) -> None:
    SigningKey.generate().public.save(directory / "wrong.pub")
    assert audit("run", "--key", "wrong.pub") == failures.VERIFICATION_FAILED
    assert audit("--query", "SELECT * FROM runs WHERE 1 = 0") == failures.GOOD


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "wanted a run to put into the database, or --query"),
        (["--query", "SELECT 1"], "audit.db does not exist; esper audit RUN makes it"),
        (["run", "--query", "DELETE FROM runs"], "--query: not authorized"),
        (["run", "--query", "SELECT x FROM runs"], "--query: no such column: x"),
        (["run", "--database", "run/checkpoint"], "is no database of SQLite"),
        (["run", "run", "--follow"], "--follow: wanted one run"),
        (["run/checkpoint", "--follow"], "--follow: run/checkpoint is no run's directory"),
        (["nowhere"], "does not exist"),
    ],
)
def test_bad_usage(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(*arguments) == failures.BAD_USAGE
    assert reason in capsys.readouterr().err


def test_a_server_that_is_away_has_failed(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"postgresql://me:sesame@/audit?host={directory}"
    assert audit("run", "--database", url) == failures.FAILED
    told = capsys.readouterr()
    assert told.err.startswith("esper: --database: PostgreSQL (user=me dbname=audit host=")
    assert "sesame" not in told.err + told.out


def test_the_database_follows_a_run(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with growing(RUN, directory / "grows"):
        assert audit("grows", "--follow", "--query", "SELECT events FROM runs") == failures.GOOD
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "grows: 3 events of log run-1 in audit.db, 3 of them new"
    assert lines[-2:] == ["events", "7"]
    assert sum(int(line.split(", ")[1].split()[0]) for line in lines if "new" in line) == 7
    assert sum("signed by" in line for line in lines) == 1


@pytest.mark.parametrize("options", [[], ["--all"]])
def test_the_history_follows_a_run(
    directory: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert failures.run(group, ["show", "run", *options]) == failures.GOOD
    wanted = capsys.readouterr().out
    with growing(RUN, directory / "grows"):
        assert failures.run(group, ["show", "grows", "-f", *options]) == failures.GOOD
    assert capsys.readouterr().out == wanted


def test_a_segment_that_does_not_fit_ends_the_following(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = make_run(SigningKey.generate(), (*opening(KEY), (ended(),))).segments
    spliced = Run(KEY, RUN.groups, (*RUN.segments[:2], forged[2]), RUN.note)
    with growing(spliced, directory / "grows"):
        assert failures.run(group, ["show", "grows", "-f"]) == failures.VERIFICATION_FAILED
    assert "FAILED: segment 2, byte " in capsys.readouterr().err
