"""What holds for every projection: a pure fold, one digest for one history however it is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.projections.canonical import as_json, canonical_bytes
from esper.projections.catalogue import PROJECTIONS
from esper.projections.lattice import ProjectionError
from esper.projections.projection import Projection
from esper.projections.replay import replay
from esper.projections.snapshots import code_version
from esper_events.events import Record
from esper_events.stages import Stage
from support.command import environment
from support.event_runs import applied, blueprint, decided, lattice
from support.histories import histories, retimed, write_log

EACH = pytest.mark.parametrize("projection", PROJECTIONS.values(), ids=PROJECTIONS.keys())
SIZES = st.lists(st.integers(1, 9), max_size=9)


def digests(projection: Projection[Any], records: list[Record]) -> list[str]:
    """The digest after every number of records, from none on."""
    state = projection.initial
    found = [state.digest()]
    for record in records:
        state = projection.fold(state, record)
        found.append(state.digest())
    return found


def test_the_catalogue_lists_the_four_by_their_names() -> None:
    assert list(PROJECTIONS) == ["lattice", "controller", "compiler", "audit"]
    assert all(projection.name == name for name, projection in PROJECTIONS.items())
    assert len({projection.initial.digest() for projection in PROJECTIONS.values()}) == 4


@EACH
@given(records=histories(), sizes=SIZES)
def test_batches_of_any_size_fold_to_the_same(
    projection: Projection[Any], records: list[Record], sizes: list[int]
) -> None:
    known, state, start = digests(projection, records), projection.initial, 0
    for size in (*sizes, len(records)):
        state = projection.fold_all(records[start : start + size], state)
        start += size
        assert state.records == min(start, len(records))
        assert state.digest() == known[state.records]


@EACH
@given(records=histories())
def test_a_state_that_was_written_down_folds_on_as_if_it_never_had_been(
    projection: Projection[Any], records: list[Record]
) -> None:
    state = projection.initial
    for record in records:
        read = msgspec.msgpack.decode(canonical_bytes(state), type=type(state))
        assert canonical_bytes(read) == canonical_bytes(state)
        state = projection.fold(state, record)
        after = projection.fold(read, record)
        assert canonical_bytes(after) == canonical_bytes(state)
        assert after.digest() == state.digest()
        assert projection.words(after) == projection.words(state)


@EACH
@given(records=histories())
def test_a_fold_leaves_the_state_before_it_and_the_record_alone(
    projection: Projection[Any], records: list[Record]
) -> None:
    state = projection.initial
    for record in records:
        before, event = canonical_bytes(state), msgspec.msgpack.encode(record)
        after = projection.fold(state, record)
        assert canonical_bytes(state) == before
        assert msgspec.msgpack.encode(record) == event
        state = after
    assert canonical_bytes(projection.initial) == canonical_bytes(type(projection.initial)())


@EACH
@given(records=histories())
def test_neither_time_nor_the_order_of_mappings_is_read(
    projection: Projection[Any], records: list[Record]
) -> None:
    assert digests(projection, [retimed(record) for record in records]) == digests(
        projection, records
    )


@EACH
@given(records=histories())
def test_every_state_can_be_said_and_put_into_json(
    projection: Projection[Any], records: list[Record]
) -> None:
    for state in (projection.initial, projection.fold_all(records)):
        lines = projection.words(state)
        assert lines
        assert all(lines)
        text = json.dumps(as_json(state), allow_nan=False)
        assert json.loads(text)["records"] == state.records


@EACH
@given(records=histories(), sizes=SIZES)
@settings(max_examples=8)
def test_a_log_replays_to_the_same_digest_at_every_place_however_it_was_cut_into_segments(
    tmp_path_factory: pytest.TempPathFactory,
    projection: Projection[Any],
    records: list[Record],
    sizes: list[int],
) -> None:
    run = write_log(tmp_path_factory.mktemp("run"), records, sizes)
    found = [replay(run, projection, seq).digest for seq in range(len(records) + 1)]
    assert found == digests(projection, records)
    assert replay(run, projection).digest == found[-1]


@given(records=histories())
@settings(max_examples=2)
def test_digests_are_the_same_in_every_process(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record]
) -> None:
    directory = tmp_path_factory.mktemp("run")
    write_log(directory, records)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from esper.projections.catalogue import PROJECTIONS\n"
        "from esper.projections.snapshots import code_version\n"
        "from esper_events.reader import LogReader\n"
        "records = list(LogReader(Path(sys.argv[1])).records())\n"
        "print(code_version())\n"
        "for projection in PROJECTIONS.values():\n"
        "    state = projection.initial\n"
        "    print(state.digest())\n"
        "    for record in records:\n"
        "        state = projection.fold(state, record)\n"
        "        print(state.digest())\n"
    )
    here = [d for projection in PROJECTIONS.values() for d in digests(projection, records)]
    for salt in ("0", "1", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(directory)],
            env={**environment(directory), "PYTHONHASHSEED": salt},
            capture_output=True,
            check=True,
            text=True,
        )
        assert done.stdout.split() == [code_version(), *here]


@EACH
def test_a_gap_in_the_log_is_refused_with_its_place(projection: Projection[Any]) -> None:
    with pytest.raises(ProjectionError, match="event 1: got record 1, wanted 0"):
        projection.fold_all([Record(1, lattice("fc"))])


@pytest.mark.parametrize("name", ["controller", "compiler", "audit"])
def test_a_decision_that_is_not_open_cannot_be_settled(name: str) -> None:
    records = [Record(0, lattice("fc")), Record(1, applied(7))]
    with pytest.raises(ProjectionError, match="event 1: decision 7 is settled, but it is not open"):
        PROJECTIONS[name].fold_all(records)


@pytest.mark.parametrize("name", ["controller", "compiler", "audit"])
def test_a_decision_is_not_made_twice_while_it_is_open(name: str) -> None:
    made = decided(3, Stage.DORMANT, Stage.GERMINATED)
    records = [Record(index, event) for index, event in enumerate((lattice("fc"), made, made))]
    with pytest.raises(ProjectionError, match="event 2: decision 3 was made twice"):
        PROJECTIONS[name].fold_all(records)


def test_projections_load_neither_torch_nor_nats(tmp_path: Path) -> None:
    code = (
        "import sys, esper.projections.catalogue, esper.projections.replay\n"
        "print(*sorted({'torch', 'nats', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment(tmp_path)},
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.split() == []


def test_a_blueprint_that_is_registered_twice_is_one() -> None:
    records = [Record(0, blueprint()), Record(1, blueprint())]
    state = PROJECTIONS["compiler"].fold_all(records)
    assert [entry.standing for entry in state.blueprints.values()] == ["registered"]
