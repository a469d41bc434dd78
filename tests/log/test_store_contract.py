"""What every store promises; the same tests run against all three."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esper.log.endpoint import Endpoint
from esper.log.errors import ConflictError
from esper.log.jetstream import JetStreamStore
from esper.log.journal import JournalStore
from esper.log.memory import MemoryStore
from esper.log.store import Store
from esper_events.keys import SigningKey
from support.log_runs import UserServer, sealed

Opener = Callable[[], Store]


@pytest.fixture(params=["memory", "journal", "jetstream"])
def open_store(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    shared_server: UserServer,
    fresh_log: Callable[[], str],
) -> Iterator[Opener]:
    """Opens a store on one medium, again and again."""
    medium: list[bytes] = []
    log = fresh_log()
    openers: dict[str, Opener] = {
        "memory": lambda: MemoryStore(medium),
        "journal": lambda: JournalStore(tmp_path / "journal"),
        "jetstream": lambda: JetStreamStore(Endpoint(shared_server.url), log),
    }
    opened: list[Store] = []

    def open_one() -> Store:
        opened.append(openers[request.param]())
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture(scope="module")
def segments(key: SigningKey) -> list[bytes]:
    return sealed(key, 80)


def test_a_new_store_is_empty(open_store: Opener) -> None:
    store = open_store()
    assert store.count == 0
    assert list(store.read()) == []


def test_segments_come_back_in_order_and_exactly(open_store: Opener, segments: list[bytes]) -> None:
    store = open_store()
    for position, segment in enumerate(segments):
        store.append(position, segment)
    assert store.count == len(segments)
    assert list(store.read()) == segments
    assert list(store.read(77)) == segments[77:]
    assert list(store.read(len(segments))) == []


def test_what_was_appended_is_there_after_closing_and_opening(
    open_store: Opener, segments: list[bytes]
) -> None:
    store = open_store()
    for position in range(3):
        store.append(position, segments[position])
    store.close()
    store.close()
    again = open_store()
    assert again.count == 3
    again.append(3, segments[3])
    assert list(again.read()) == segments[:4]


@pytest.mark.parametrize("position", [0, 1, 3, 100])
def test_only_the_next_position_is_taken(
    open_store: Opener, segments: list[bytes], position: int
) -> None:
    store = open_store()
    store.append(0, segments[0])
    store.append(1, segments[1])
    with pytest.raises(ConflictError):
        store.append(position, segments[2])
    store.append(2, segments[2])
    assert list(store.read()) == segments[:3]


def test_a_second_writer_is_refused(
    open_store: Opener, segments: list[bytes], key: SigningKey
) -> None:
    first = open_store()
    first.append(0, segments[0])
    other = sealed(key, 2, salt=1000)[1]

    def write_beside() -> None:
        second = open_store()
        first.append(1, segments[1])
        second.append(1, other)

    with pytest.raises(ConflictError, match=r"writer|writes|written"):
        write_beside()
    assert next(iter(first.read())) == segments[0]
    assert other not in list(first.read())
