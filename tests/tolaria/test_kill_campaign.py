"""The kill campaign in short; ``make kill-campaign`` is the whole of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from benchmarks.kill_campaign import Figures, Outcome, main
from benchmarks.kill_checks import Violation, in_order, kept
from benchmarks.kill_place import Logged, Place
from benchmarks.kill_points import Diary, Point, Points, Strike, Told, digest, read_diary
from benchmarks.kill_trial import Kill
from esper_events.events import Event, Record, TransitionApplied, TransitionDecided
from esper_events.keys import SigningKey
from esper_events.stages import Stage
from support.log_runs import ROOT, plateau, python, started


def test_runs_that_are_killed_keep_every_promise(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.kill_campaign", "--kills", "20", "--seeds", "1"),
            *("--keep", str(tmp_path / "kept"), "--json", str(tmp_path / "figures.json")),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "events")]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = msgspec.json.decode((tmp_path / "figures.json").read_bytes(), type=Figures)
    assert sum(found.kills.values()) >= 20
    assert set(found.broken.values()) == {0}
    assert found.applied > 0
    assert list((tmp_path / "kept").iterdir()) == []


def decided(number: int) -> TransitionDecided:
    return TransitionDecided(
        time=1.0,
        decision=number,
        step=1,
        at_step=2,
        seed=0,
        slot="a",
        blueprint="b",
        source=Stage.DORMANT,
        target=Stage.GERMINATED,
        reason="",
    )


APPLIED = TransitionApplied(time=2.0, decision=0, step=2, seed_weights="", steps_lost=0)
EVENTS = [started(SigningKey.generate()), plateau(1), decided(0), APPLIED]


def records(events: Sequence[Event]) -> list[Record]:
    return [Record(index, event) for index, event in enumerate(events)]


@pytest.mark.parametrize(
    ("events", "acknowledged", "found"),
    [
        (EVENTS, [0, 1, 2, 3], []),
        (EVENTS, [0, 1, 2], []),
        (EVENTS[:3], [0, 1, 2, 3], ["lost: acknowledged event 3 is not in the log"]),
        (EVENTS, [0, 1], ["not whole: change 0 was applied unacknowledged"]),
        ([*EVENTS[:2], APPLIED], [0, 1], ["not whole: change 0 was applied undecided"]),
        ([EVENTS[0], plateau(7)], [0, 1], ["lost: acknowledged event 1 is another in the log"]),
    ],
)
def test_a_broken_promise_is_found(
    events: Sequence[Event], acknowledged: Sequence[int], found: Sequence[str], tmp_path: Path
) -> None:
    diary = Diary(tmp_path / "diary")
    diary.acknowledged(records(EVENTS)[index] for index in acknowledged)
    told = read_diary(tmp_path / "diary")
    assert told.acknowledged == {index: digest(EVENTS[index]) for index in acknowledged}
    logged = Logged(records(events), 0)
    violations = [*kept(told, logged.events, "the log"), *in_order(told, logged)]
    assert list(map(str, violations)) == found


def test_an_acknowledgement_that_changed_is_found(tmp_path: Path) -> None:
    diary = Diary(tmp_path / "diary")
    for event in (plateau(1), plateau(2)):
        diary.acknowledged([Record(0, event)])
    told = read_diary(tmp_path / "diary")
    assert told.changed == [0]


def test_points_are_counted_by_what_is_done_to_which_file(tmp_path: Path) -> None:
    points = Points(tmp_path, Place(tmp_path).server, Diary(tmp_path / "diary"), [])
    with (tmp_path / "0123.draft").open("w") as file:
        assert points.place(file.fileno()) == "*.draft"
    assert points.place(tmp_path / "run" / "checkpoint") == "run/checkpoint"
    assert points.place("/dev/null") is None
    points.reach("fsync run/journal/segments")
    assert points.census == {"fsync run/journal/segments": 1}


def waiting(argument: str) -> subprocess.Popen[str]:
    """A process with that argument, which has begun."""
    process = python("input('ready')", argument)
    assert process.stdout is not None
    assert process.stdout.read(5) == "ready"
    return process


def publish(place: Place, server: subprocess.Popen[str]) -> None:
    (place.server / "endpoint.json").write_text(json.dumps({"pid": server.pid}))


def test_a_strike_at_a_server_waits_until_there_is_one(tmp_path: Path) -> None:
    place, strike = Place(tmp_path), Strike("server", Point("mkdir run", 1))
    points = Points(tmp_path, place.server, Diary(place.diary), [strike])
    points.reach("mkdir run")
    assert read_diary(place.diary) == Told()
    place.server.mkdir(parents=True)
    with waiting("another") as another, waiting(str(place.server)) as server:
        publish(place, another)  # A number that was the server's once.
        points.reach("write run")
        assert another.poll() is None
        publish(place, server)
        points.reach("write run")
        assert server.wait(30) == -signal.SIGKILL
        another.kill()
    assert read_diary(place.diary).strikes == [strike]


def test_a_campaign_goes_on_and_fails_for_a_broken_promise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strikes = [Strike("trainer", 0.5), Strike("both", Point("mkdir run", 1))]
    good = Outcome(
        number=0,
        mode="sync, journal",
        seed=0,
        strikes=strikes,
        kills=[Kill(1, 0, "from a checkpoint"), Kill(0, 9, "anew")],
        applied=12,
        unanswered=0,
        violations=[],
        seconds=1.0,
    )
    bad = msgspec.structs.replace(good, number=1, violations=[Violation("lost", "event 3")])
    progress = tmp_path / "progress"
    arguments = ["--kills", "2", "--progress", str(progress)]
    progress.write_bytes(msgspec.json.encode(good) + b"\n")
    assert main(arguments) == 0
    assert "2 kills (both 1, trainer 1) and 0 pauses in 1 runs" in capsys.readouterr().out
    progress.write_bytes(msgspec.json.encode(good) + b"\n" + msgspec.json.encode(bad) + b"\n")
    assert main(arguments) == 1
    assert "broken promises: doubled 0, lost 1" in capsys.readouterr().out
