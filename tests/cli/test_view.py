"""The view, the story and the summary, from recorded events and made-up figures."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from esper.cli.story import Story
from esper.cli.summary import as_dict, print_summary
from esper.cli.view import LiveView, PlainView, watching
from esper.tolaria.observer import Grown, Observer, Outcome, SeedRow
from esper_events.events import (
    BlueprintRegistered,
    BreakerChanged,
    Event,
    GateMeasured,
    HostRolledBack,
    LatticeDeclared,
    PlateauDetected,
    Record,
    ReplicaChanged,
    RollbackDecided,
    RunEnded,
    RunStarted,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
    TrialMeasured,
)
from esper_events.stages import Gate, Stage

BLUEPRINT = "ab" * 32


def decided(number: int, source: Stage, target: Stage, **more: str) -> TransitionDecided:
    return TransitionDecided(
        time=0.0,
        decision=number,
        step=90,
        at_step=100,
        seed=3,
        slot="layer1..head",
        blueprint=BLUEPRINT,
        source=source,
        target=target,
        reason="it is time",
        **more,  # type: ignore[arg-type]
    )


def applied(number: int, lost: int = 0) -> TransitionApplied:
    return TransitionApplied(time=0.0, decision=number, step=100, seed_weights="", steps_lost=lost)


def lapsed(number: int) -> TransitionLapsed:
    return TransitionLapsed(time=0.0, decision=number, step=100, reason="no answer")


def told(*events: Event) -> list[str]:
    story = Story()
    lines = (story.tell(Record(i, event)) for i, event in enumerate(events))
    return [line for line in lines if line is not None]


BEGINNING: tuple[Event, ...] = (
    RunStarted(
        time=0.0,
        run="r",
        trainer_key=b"",
        host_weights="",
        config="",
        seed=5,
        version="1",
        platform={},
    ),
    LatticeDeclared(time=0.0, slots=(), left_out={}),
    BlueprintRegistered(time=0.0, blueprint=BLUEPRINT, name="widen", body=b""),
)


def test_a_decision_and_its_application_are_one_line_with_names() -> None:
    lines = told(*BEGINNING, decided(0, Stage.TRAINING, Stage.GRAFTING), applied(0))
    assert lines == [
        "           run r starts, seed 5",
        "           0 places to grow: none",
        "step 100   seed 3 (widen in layer1..head) training -> grafting: it is time",
    ]


def test_a_local_objective_is_told_where_the_seed_begins() -> None:
    germination = decided(0, Stage.DORMANT, Stage.GERMINATED, objective="next_layer")
    assert told(germination, applied(0))[0].endswith(
        "dormant -> germinated with the objective next_layer: it is time"
    )


def test_a_cull_says_how_the_seed_left() -> None:
    lines = told(decided(0, Stage.EVALUATING, Stage.CULLED, removal="fork"), applied(0, lost=40))
    assert lines == [
        "step 100   seed 3 (abababababab in layer1..head) evaluating -> culled, the fork goes on "
        "in its place, 40 steps lost: it is time"
    ]


def test_a_lapse_is_told_where_something_hung_on_it() -> None:
    grafting = decided(0, Stage.TRAINING, Stage.GRAFTING)
    assert told(grafting, lapsed(0))[0].endswith("stays training, the change lapsed: no answer")
    assert told(decided(0, Stage.CULLED, Stage.EMBARGOED), lapsed(0)) == []
    assert told(lapsed(7)) == ["step 100   decision 7 lapsed: no answer"]
    assert told(applied(7)) == ["step 100   decision 7 applied"]


def test_what_is_judged_and_what_breaks_is_told() -> None:
    figures = {"gain": 0.21564}
    lines = told(
        PlateauDetected(time=0.0, step=9, figures={}),
        TrialMeasured(time=0.0, step=9, seed=3, figures=figures),
        GateMeasured(
            time=0.0, step=9, seed=3, gate=Gate.FORK, passed=True, reason="better", figures=figures
        ),
        GateMeasured(time=0.0, step=9, seed=3, gate=Gate.BLEND, passed=True, reason="", figures={}),
        BreakerChanged(time=0.0, step=9, breaker="log", state="open", reason="late"),
        ReplicaChanged(time=0.0, replica="nats", state="lagging", behind=2, reason="away"),
        ReplicaChanged(time=0.0, replica="nats", state="level", behind=0, reason=""),
        RunEnded(
            time=0.0,
            step=9,
            outcome="failed",
            reason="x\n\x1b[31m",
            final_weights="",
            lattice="",
            figures={},
        ),
    )
    assert [line[11:] for line in lines] == [
        "held-out loss has stopped falling",
        "seed 3 passes the fork gate: better [gain 0.2156]",
        "circuit breaker log open: late",
        "the copy of the log on nats lags by 2 segments: away",
        "the copy of the log on nats is whole",
        "run failed (x  [31m)",
    ]


def row(number: int, stage: Stage, gain: float | None = None) -> SeedRow:
    return SeedRow(
        seed=number,
        slot="[red]slot",
        blueprint="widen",
        stage=stage,
        alpha=0.5,
        parameters=1234,
        gain=gain,
    )


def watch(view: Observer) -> None:
    view.part("grown", 100)
    for step in range(1, 101):
        view.progress(step, 100, 1.0 / step, 50.0 if step > 50 else None)
    for index, event in enumerate((*BEGINNING, decided(0, Stage.TRAINING, Stage.GRAFTING))):
        view.event(Record(index, event))
    view.event(Record(4, applied(0)))
    view.seeds([row(number, Stage.TRAINING, 0.25) for number in range(12)])
    view.part("host alone", 100)
    view.progress(100, 100, 0.125, 99.5)


def test_the_live_view_shows_bars_seeds_and_transitions() -> None:
    out = io.StringIO()
    view = LiveView(Console(file=out, force_terminal=True, width=120, color_system=None))
    with view.live:
        watch(view)
    text = out.getvalue()
    assert "seed 3 (widen in layer1..head) training -> grafting" in text
    last = text[text.rindex("loading torch") if "grown" not in text else text.rindex("grown") :]
    assert "100/100" in last
    assert "loss 0.1250  held-out 99.5 %" in last
    assert "[red]slot" in last
    assert "1,234" in last
    assert "+25.0 %" in last
    assert "and 4 older" in last


def test_the_live_view_stands_a_narrow_terminal() -> None:
    out = io.StringIO()
    view = LiveView(Console(file=out, force_terminal=True, width=40, color_system=None))
    with view.live:
        watch(view)
    assert "held-out" in out.getvalue()


def test_plain_lines_tell_progress_by_tenths() -> None:
    out = io.StringIO()
    watch(PlainView(Console(file=out, width=40)))
    lines = out.getvalue().splitlines()
    assert lines[0] == "== grown: 100 steps"
    assert lines[1] == "step 10    loss 0.1000"
    assert lines[10] == "step 100   loss 0.0100  held-out 50.0 %"
    assert lines[13] == "step 100   seed 3 (widen in layer1..head) training -> grafting: it is time"
    assert lines[-2:] == ["== host alone: 100 steps", "step 100   loss 0.1250  held-out 99.5 %"]


def test_breakers_that_are_not_closed_are_shown_until_they_are() -> None:
    out = io.StringIO()
    plain = PlainView(Console(file=out, width=40))
    states = [{"log": "closed"}, {"log": "open", "objects": "closed"}, {"log": "open"}]
    for told_states in (*states, {"log": "half-open", "objects": "open"}, {"log": "closed"}):
        plain.breakers(told_states)
    waits = "growth waits, training goes on"
    assert out.getvalue().splitlines() == [
        f"circuit breaker log open: {waits}",
        f"circuit breaker log half-open: {waits}; circuit breaker objects open",
        "all circuit breakers are closed again",
    ]
    screen = io.StringIO()
    live = LiveView(Console(file=screen, force_terminal=True, width=120, color_system=None))
    with live.live:
        live.breakers({"log": "open"})
    assert f"circuit breaker log open: {waits}" in screen.getvalue()
    last = io.StringIO()
    print_summary(outcome(breakers={"log": "open", "objects": "closed"}), Console(file=last))
    assert "circuit breaker log: open" in last.getvalue()
    assert "objects" not in last.getvalue()


def test_the_story_of_a_host_that_went_back() -> None:
    decided_back = RollbackDecided(time=0.0, step=55, to_step=40, file="f", reason="loss is nan")
    back = HostRolledBack(time=0.0, step=56, to_step=40, weights="w")
    assert told(decided_back, back) == [
        "step 55    the host is spoilt: loss is nan",
        "step 56    the host is back at step 40, 16 steps lost",
    ]


def test_warnings_are_lines_of_the_view(capsys: pytest.CaptureFixture[str]) -> None:
    with watching(to_stderr=True):
        logging.getLogger("esper.log").warning("the server is [bold]away[/bold]")
    logging.getLogger("esper.log").warning("not shown by the view")
    assert capsys.readouterr().err.startswith("warning: the server is [bold]away[/bold]\n")


def outcome(**changes: object) -> Outcome:
    values: dict[str, object] = {
        "run": "r",
        "run_dir": "runs/my run",
        "events": 211,
        "segments": 93,
        "head": "5b" * 32,
        "final_weights": "cf" * 32,
        "data": "digits",
        "steps": 4000,
        "test_loss": 0.15,
        "control_loss": 0.25,
        "static_loss": 0.125,
        "test_accuracy": 95.749998,
        "control_accuracy": 91.25,
        "static_accuracy": 96.25,
        "parameters": 2942,
        "fossils": 1,
        "control_parameters": 682,
        "static_parameters": 2942,
        "behind": 0,
    }
    return Outcome(**{**values, **changes})  # type: ignore[arg-type]


def summary(result: Grown) -> str:
    out = io.StringIO()
    print_summary(result, Console(file=out, width=80, color_system=None))
    return out.getvalue()


def test_the_summary_compares_and_says_what_to_type_next() -> None:
    text = summary(outcome())
    rows = [line.split() for line in text.splitlines() if line.endswith("%")]
    assert [line[-2] for line in rows] == ["91.25", "95.75", "96.25"]
    assert "2,942" in rows[1]
    assert "+4.50 points against the host alone, -0.50 against the same shape" in text
    assert "next: esper show 'runs/my run'\n" in text
    assert "next: esper verify 'runs/my run'\n" in text
    assert "repair" not in text
    assert "211 events in 93 segments, head 5b5b5b5b5b5b5b5b" in text


def test_the_summary_of_a_text_counts_in_bits() -> None:
    losses = {"test_loss": 1.0, "control_loss": 1.25, "static_loss": 0.875}
    text = summary(outcome(data="characters", **losses))
    rows = [line.split() for line in text.splitlines() if line.endswith("%")]
    assert [line[-3] for line in rows] == ["1.803", "1.443", "1.262"]
    assert "changed the bits per character by -0.361 against the host alone, +0.180" in text


def test_the_summary_of_a_run_that_did_not_grow_says_so() -> None:
    text = summary(outcome(parameters=682, fossils=0, behind=2))
    assert "the model kept its shape" in text
    assert "next: esper repair 'runs/my run'   (the server lacks 2 segments)" in text


def test_the_summary_of_a_run_without_controls_compares_nothing() -> None:
    names = Grown.__struct_fields__
    alone = Grown(**{name: getattr(outcome(), name) for name in names})
    text = summary(alone)
    rows = [line.split() for line in text.splitlines() if line.endswith("%")]
    assert [line[-2] for line in rows] == ["95.75"]
    assert "points" not in text
    assert "kept its shape" not in text


def test_json_figures_are_rounded() -> None:
    assert as_dict(outcome())["test_accuracy"] == 95.75
