"""``esper explain``: every decision of a run computed again, by an auditor who has its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from esper.cli import failures
from esper.cli.main import esper as group
from esper.log.event_log import EventLog
from esper.log.journal import JournalStore
from esper.log.objects import read_object
from esper.tamiyo.explain import Explanation, Reasons
from esper.tamiyo.interface import Controller, Policy
from esper.tamiyo.rules import RuleController, Rules
from esper.tolaria.growth import Growth
from esper.tolaria.inputs import default_controller
from esper_events.events import (
    ControllerConsulted,
    Event,
    GateMeasured,
    PlateauDetected,
    Record,
    SeedFolded,
    TransitionApplied,
    TransitionDecided,
    TrialMeasured,
)
from esper_events.keys import SigningKey
from esper_events.reader import LogReader
from support.growth_runs import FAST, Loop, OneSeed, with_

SETTINGS = with_(
    FAST, patience=2, plateau=1.0, trials=3, trial_steps=12, rungs=1, blueprints=("widen",)
)
STEPS = 170
WHY = (ControllerConsulted, PlateauDetected, TransitionDecided)


KEY = SigningKey.generate()


def begin(directory: Path, controller: Controller, steps: int, **more: Any) -> Growth:
    """A run on disk, as far as ``steps``."""
    log = EventLog(JournalStore(directory / "journal"), KEY, "test", run_dir=directory)
    loop = Loop()
    growth = loop.grow(SETTINGS, controller, log=log, **more)
    loop.run(steps)
    return growth


def train(directory: Path, controller: Controller, steps: int = STEPS) -> Path:
    """A whole run on disk."""
    begin(directory, controller, steps).close()
    return directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the rule-based controller, to be left as it is."""
    return train(tmp_path_factory.mktemp("explained"), default_controller(SETTINGS, 0))


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    """Runs ``esper explain --json``: its exit code and object."""

    def run(*arguments: object) -> tuple[int, Any]:
        code = failures.run(group, ["explain", *map(str, arguments), "--json"])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def objects(run: Path) -> list[Path]:
    return sorted((run / "objects").iterdir())


def test_every_decision_of_a_run_is_the_same_again(trained: Path, told: Any) -> None:
    code, found = told(trained, "--all")
    assert code == 0
    assert set(found["counts"]) == {"same", "not asked"}
    records = list(LogReader(trained).records())
    why = [record.index for record in records if isinstance(record.event, WHY)]
    assert [event["index"] for event in found["events"]] == why
    automatic = [e for e in found["events"] if e["verdict"] == "not asked"]
    assert {e["words"].rpartition(": ")[2] for e in automatic} <= {
        "the slot cools down",
        "the slot has cooled down",
        "the run ended",
    }
    entered = {
        record.event.target.value
        for record in records
        if isinstance(record.event, TransitionDecided) and record.event.consulted
    }
    assert {"germinated", "training", "grafting", "fossilized", "culled"} <= entered


def test_one_decision_shows_what_was_seen_and_what_it_led_to(trained: Path, told: Any) -> None:
    records = list(LogReader(trained).records())
    for record in records:
        code, found = told(trained, record.index)
        assert code == 0
        match record.event:
            case TransitionDecided(consulted=step) as event if step:
                assert found["observation"]["step"] == step
                assert found["proposals"] == found["recomputed"]
                assert found["proposal"] in found["proposals"]
                assert found["proposal"].get("seed", event.seed) == event.seed
            case PlateauDetected():
                assert found["proposal"]["kind"] == "plateau"
            case TransitionApplied(decision=number):
                decided = records[found["decision"]].event
                assert isinstance(decided, TransitionDecided)
                assert decided.decision == number
            case TrialMeasured(seed=seed) | SeedFolded(seed=seed):
                assert getattr(records[found["decision"]].event, "seed", None) == seed
            case GateMeasured(passed=True):
                assert isinstance(records[found["decision"]].event, TransitionDecided)


def test_a_decision_in_words(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = next(
        record.index
        for record in LogReader(trained).records()
        if isinstance(record.event, TransitionDecided) and record.event.target.value == "grafting"
    )
    assert failures.run(group, ["explain", str(trained), str(index)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"event {index}: step ")
    assert lines[1].startswith("it follows from event ")
    assert lines[2].startswith("policy esper/rules, version 1, ")
    assert "patience 2" in lines[3]
    assert any(line.startswith("  * advance seed ") for line in lines)
    assert lines[-1] == "same: the recomputed answer is the same"


def test_a_flipped_bit_in_any_object_is_found(copied: Path, told: Any) -> None:
    for place, path in enumerate(objects(copied)):
        whole = path.read_bytes()
        spoilt = bytearray(whole)
        spoilt[place * 37 % len(whole)] ^= 1 << place % 8
        path.write_bytes(spoilt)
        code, found = told(copied, "--all")
        assert code == 1
        reasons = {e["reason"] for e in found["events"] if e["verdict"] == "damaged"}
        (reason,) = reasons
        assert path.name in reason
        path.write_bytes(whole)


def test_a_missing_object_is_said(copied: Path, told: Any) -> None:
    for path in objects(copied)[::5]:
        whole = path.read_bytes()
        path.unlink()
        code, found = told(copied, "--all")
        assert code == 1
        assert found["counts"]["missing"] >= 1
        path.write_bytes(whole)
    shutil.rmtree(copied / "objects")
    code, found = told(copied, "--all")
    assert (code, set(found["counts"])) == (1, {"missing", "not asked"})


def test_an_export_is_explained_with_the_objects_beside_it(
    trained: Path, tmp_path: Path, told: Any
) -> None:
    export = tmp_path / "run.esper"
    assert failures.run(group, ["export-log", str(trained), str(export)]) == 0
    code, found = told(export, "--all")
    assert code == 1
    assert any("it is not in an export" in event["reason"] for event in found["events"])
    assert told(export, "--all", "--objects", trained / "objects")[0] == 0


def test_a_resumed_run_is_explained_from_its_first_decision_on(
    trained: Path, tmp_path: Path, told: Any
) -> None:
    """Killed in its tournament, its objects lost."""
    begin(tmp_path, default_controller(SETTINGS, 0), 45).log.close()
    assert len(objects(tmp_path)) > 2
    shutil.rmtree(tmp_path / "objects")
    begin(tmp_path, default_controller(SETTINGS, 0), STEPS, resume=True).close()
    assert told(tmp_path, "--all") == (0, told(trained, "--all")[1] | {"path": str(tmp_path)})
    assert [path.name for path in objects(tmp_path)] == [path.name for path in objects(trained)]


class Boasting(RuleController):
    """Says that it has other rules than it has."""

    @property
    def policy(self) -> Policy:
        policy = super().policy
        return Policy(policy.name, policy.version, {**policy.settings, "trials": 2})


class Remote(OneSeed):
    """A controller of the user's own that says who it is."""

    policy = Policy("example.org/one-seed", 3, {"start": 5})


def test_another_setting_than_the_one_on_record_gives_another_answer(
    tmp_path: Path, told: Any
) -> None:
    honest = default_controller(SETTINGS, 0).policy
    train(tmp_path, Boasting(msgspec.convert(honest.settings, Rules)), 40)
    code, found = told(tmp_path, "--all")
    assert code == 1
    first = next(event for event in found["events"] if event["verdict"] == "differs")
    assert first["reason"] == "the recomputed answer is another"
    code, found = told(tmp_path, first["index"])
    assert code == 1
    assert len(found["proposals"]) == 4
    assert len(found["recomputed"]) == 3


@pytest.mark.parametrize(("kind", "name"), [(OneSeed, ""), (Remote, "example.org/one-seed")])
def test_a_users_controller_cannot_be_recomputed_but_its_observation_is_there(
    kind: type[OneSeed], name: str, tmp_path: Path, told: Any
) -> None:
    train(tmp_path, kind("layer1..layer1", "widen"), 40)
    code, found = told(tmp_path, "--all")
    assert code == 0
    assert set(found["counts"]) == {"not recomputed", "not asked"}
    _, found = told(tmp_path, found["events"][0]["index"])
    assert found["policy"]["name"] == name
    assert found["memory"] is False
    assert found["observation"]["step"] == 5
    objects(tmp_path)[0].unlink()
    assert told(tmp_path, "--all")[0] == 1


def forged(
    run: Path, kind: type[Event], wanted: Callable[[Any], bool], **changes: Any
) -> tuple[str, str]:
    """What is said of the first event that is ``wanted``, after somebody changed it."""
    records = list(LogReader(run).records())
    told = (r for r in records if isinstance(r.event, kind) and wanted(r.event))
    index = next(told).index
    records[index] = Record(index, msgspec.structs.replace(records[index].event, **changes))
    reasons = Reasons(records, lambda digest: read_object(run / "objects", digest))
    explained = reasons.explain(index)
    assert isinstance(explained, Explanation)
    return explained.answer.verdict, explained.answer.reason


def test_a_decision_that_no_answer_led_to_is_told(trained: Path) -> None:
    def proposed(event: TransitionDecided) -> bool:
        return bool(event.consulted)

    none = ("differs", "no proposal of the answer on record leads to this decision")
    assert forged(trained, TransitionDecided, proposed, objective="reconstruction") == none
    assert forged(trained, TransitionDecided, proposed, slot="elsewhere") == none
    for target in ("culled", "training", "fossilized"):

        def reached(event: TransitionDecided, target: str = target) -> bool:
            return proposed(event) and event.target.value == target

        assert forged(trained, TransitionDecided, reached, seed=99) == none
    left_out = {"consulted": msgspec.UNSET}
    assert forged(trained, TransitionDecided, proposed, **left_out)[0] == "not on record"
    assert forged(trained, PlateauDetected, lambda _: True, figures={}) == none


def test_a_consultation_that_names_other_objects_is_told(trained: Path) -> None:
    events = [record.event for record in LogReader(trained).records()]
    first, second = [e for e in events if isinstance(e, ControllerConsulted)][:2]

    def told(**changes: str) -> tuple[str, str]:
        return forged(trained, ControllerConsulted, lambda _: True, **changes)

    assert told() == ("same", "the recomputed answer is the same")
    other = ("differs", "name or step on record are not those of the event")
    assert told(consultation=second.consultation) == other
    assert told(controller="another") == other
    assert told(policy=first.consultation)[0] == "damaged"
    assert told(consultation=first.policy)[0] == "damaged"
    assert told(consultation="../../etc/passwd")[0] == "missing"


def test_a_log_from_before_consultations_is_not_taken_for_explained(trained: Path) -> None:
    events = [r.event for r in LogReader(trained).records() if not isinstance(r.event, WHY[:1])]
    records = [
        Record(index, msgspec.structs.replace(event, consulted=msgspec.UNSET))
        if isinstance(event, TransitionDecided)
        else Record(index, event)
        for index, event in enumerate(events)
    ]
    explained = list(Reasons(records, lambda _: b"").all())
    silent = [e.record.event for e in explained if e.answer.verdict == "not on record"]
    cooling = [e.record.event for e in explained if e.answer.verdict == "not asked"]
    assert len(silent) > 10
    assert len(silent) + len(cooling) == len(explained)
    targets = {event.target.value for event in cooling if isinstance(event, TransitionDecided)}
    assert targets <= {"embargoed", "dormant"}


@pytest.mark.parametrize("arguments", [[], ["3", "--all"], ["9999"], ["--objects", "nowhere", "1"]])
def test_wrong_usage(arguments: list[str], trained: Path) -> None:
    assert failures.run(group, ["explain", str(trained), *arguments]) == 2


def test_a_damaged_log_explains_nothing(copied: Path) -> None:
    segments = copied / "journal" / "segments"
    whole = bytearray(segments.read_bytes())
    whole[len(whole) // 2] ^= 1
    segments.write_bytes(whole)
    assert failures.run(group, ["explain", str(copied), "--all"]) == 1
