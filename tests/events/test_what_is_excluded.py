"""A verdict says all that it does not exclude: what was done to a log is either refused or named in
a note, with the event after which it may have been done."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from esper_events.anchor import Anchor, Fingerprint
from esper_events.checkpoint import SignedCheckpoint, parse_checkpoint
from esper_events.events import Event, PlateauDetected
from esper_events.export import export_run
from esper_events.keys import SigningKey
from esper_events.verify import Report, verify_path
from support.event_runs import Run, ended, make_run, opening

OWNER, OTHER = SigningKey.generate(), SigningKey.generate()
CUT = "a cut at a segment boundary"
MADE_UP = "a log made up whole under another key"
REWRITTEN = "a history rolled back or rewritten"

Groups = tuple[tuple[Event, ...], ...]


def plateau(step: int) -> PlateauDetected:
    return PlateauDetected(time=5.0, step=step, figures={})


RUNNING: Groups = (*opening(OWNER), (plateau(12),))
ENDED: Groups = (*opening(OWNER), (ended(),))
WHOLE = make_run(OWNER, ENDED)


@dataclass(frozen=True)
class Forgery:
    """What lies there in place of the true log; ``at`` is the first event that differs or lacks."""

    name: str
    note: str
    at: int
    run: Run
    checkpoint: bool = True


def forgeries(true: Groups) -> list[Forgery]:
    first, second, third = true
    made_up = make_run(OTHER, (*opening(OTHER), third))
    found = [Forgery("made up", MADE_UP, 0, made_up)]
    for keep in (1, 2):
        run = make_run(OWNER, true[:keep])
        at = sum(map(len, true[:keep]))
        # Without the key: with an older checkpoint that was kept for this, or with none.
        found.append(Forgery(f"cut at {at}", CUT, at, run))
        found.append(Forgery(f"cut at {at}, no checkpoint", CUT, at, run, checkpoint=False))
    rewritten = (second[0], plateau(77))
    for groups, at in (((first, rewritten), 4), ((first, second, (plateau(13), *third)), 6)):
        found.append(Forgery(f"rewritten at {at}", REWRITTEN, at, make_run(OWNER, groups)))
    return found


def admits(report: Report, forgery: Forgery) -> bool:
    """Whether the report says that this may have been done."""
    for note in report.messages[1:]:
        if forgery.note in note:
            after = re.search(r"after event (\d+)", note)
            return after is None or int(after[1]) < forgery.at
    return False


PINS: tuple[Anchor | None, ...] = (
    None,
    OWNER.public,
    Fingerprint(OWNER.public.fingerprint),
    Fingerprint(OWNER.public.openssh_fingerprint),
)


def kept_of(true: Groups, groups: int) -> SignedCheckpoint | None:
    return parse_checkpoint(make_run(OWNER, true[:groups]).note) if groups else None


@pytest.mark.parametrize("true", [RUNNING, ENDED], ids=["running", "ended"])
@pytest.mark.parametrize("exported", [False, True])
def test_every_forgery_is_refused_or_admitted(true: Groups, exported: bool, tmp_path: Path) -> None:
    passed = 0
    for number, forgery in enumerate(forgeries(true)):
        directory = tmp_path / str(number)
        forgery.run.write(directory, checkpoint=forgery.checkpoint)
        if exported and not forgery.checkpoint:
            continue  # nothing is exported without one
        path = directory.with_suffix(".esper") if exported else directory
        if exported:
            export_run(directory, path)
        for pin, groups in product(PINS, range(4)):
            report = verify_path(path, pin, kept_of(true, groups))
            assert not report.ok or admits(report, forgery), (forgery.name, pin, report.messages)
            passed += report.ok
    assert passed  # else nothing was asked


def test_nothing_is_left_open_of_an_ended_run_whose_last_checkpoint_was_kept(
    tmp_path: Path,
) -> None:
    WHOLE.write(tmp_path / "run")
    kept = parse_checkpoint(WHOLE.note)
    for pin in PINS:
        assert len(verify_path(tmp_path / "run", pin, kept).messages) == 1
        for number, forgery in enumerate(forgeries(ENDED)):
            forgery.run.write(tmp_path / str(number), checkpoint=forgery.checkpoint)
            assert not verify_path(tmp_path / str(number), pin, kept).ok, forgery.name


@pytest.mark.parametrize("groups", range(4))
@pytest.mark.parametrize("pin", PINS, ids=["", "key", "fingerprint", "ssh fingerprint"])
def test_what_is_excluded_is_not_said_to_be_open(
    pin: Anchor | None, groups: int, tmp_path: Path
) -> None:
    """Each note is there only where something that it names would pass."""
    WHOLE.write(tmp_path)
    notes = verify_path(tmp_path, pin, kept_of(ENDED, groups)).messages[1:]
    said = {name for name in (CUT, MADE_UP, REWRITTEN) if any(name in note for note in notes)}
    expected = set() if groups == 3 else {REWRITTEN}
    if pin is None and groups == 0:
        expected.add(MADE_UP)
    assert said == expected
