"""Logs that are out there stay readable: one for each state that the catalogue has had."""

from __future__ import annotations

import hashlib
import typing
from pathlib import Path

import pytest

from esper.projections.lattice import fold_all
from esper_events.codec import encode_event
from esper_events.events import Event
from esper_events.framing import read_frames
from esper_events.reader import MAGIC, LogReader
from esper_events.segment import open_segment
from esper_events.verify import verify_path
from support.golden import DIRECTORY, write

NEWEST = "0.1.0.dev4"
KEPT = {
    "0.1.0.dev1": (
        "6db25d0bab1a49fa66158b684640c3377d46adc5a7c96c6d739eb90b26d6a97d",
        "bbd27e4519b68e1ef01d4eba70e625648a503f1c12ffda421b9d99340e3a7510",
    ),
    "0.1.0.dev2": (
        "732ccb23c7ecc4345c4fae0dd279e8ba6327fceda284881e43f788bb407d5820",
        "9240bcf77a994f0152b3fa3311b0924bce0bec3faeb88bb93e543005014ac5b6",
    ),
    "0.1.0.dev3": (
        "b831d55c09b9cbd1a09a6678880ee7491c934f916d687a4349a451b2bebceef5",
        "4d420a67cfb3e3741b1900cc213b29446e0d208a082825792c66ff55bdf8ccc8",
    ),
    "0.1.0.dev4": (
        "714170f9e5a8606184c2675d75f333e8a55f4f44074979ec812718b1aa4b9493",
        "01dc53211f5b8e21b142c1d2f82edcd4418d20526246c0844031f3f05d5073f6",
    ),
}


def newest() -> Path:
    return DIRECTORY / f"{NEWEST}.esper"


def test_none_was_lost() -> None:
    assert {path.stem for path in DIRECTORY.iterdir()} == set(KEPT)


@pytest.mark.parametrize("version", KEPT)
def test_a_log_of_then_says_today_what_it_said(version: str) -> None:
    file = DIRECTORY / f"{version}.esper"
    digest, lattice = KEPT[version]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    report = verify_path(file)
    assert report.ok, report.message
    records = list(LogReader(file).records())
    assert len(records) == report.events
    assert fold_all(records).digest() == lattice
    with file.open("rb") as source:
        source.seek(len(MAGIC))
        segments = [open_segment(data) for _, data in read_frames(source, terminated=True)]
    stored = [event for segment in segments for event in segment.events]
    assert [encode_event(record.event) for record in records] == stored


def test_every_kind_of_today_stands_in_the_newest(tmp_path: Path) -> None:
    """Where this fails, the catalogue has grown: keep another log with ``support.golden``."""
    kinds = {type(record.event) for record in LogReader(newest()).records()}
    assert kinds == set(typing.get_args(Event))
    write(tmp_path / "again.esper")
    assert (tmp_path / "again.esper").read_bytes() == newest().read_bytes()
