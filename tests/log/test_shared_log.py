"""A log that many write: each update stands in it once, whatever the server does meanwhile."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.log import shared_log
from esper.log.endpoint import Endpoint
from esper.log.entries import Signer
from esper.log.errors import (
    BrokenLogError,
    ConflictError,
    LogError,
    MissingStreamError,
    OutcomeUnknownError,
    RolledBackError,
    StoreUnavailableError,
)
from esper.log.seen import SeenSegments
from esper.log.shared_log import SharedLog
from esper.log.sources import UserSource
from esper_events.keys import SigningKey
from esper_events.registry import REGISTRY, RegistryRecord, RunRegistered
from support.log_runs import UserServer, python, wait_until
from support.registries import registered

KEY = SigningKey.generate()
WRITERS, UPDATES = 3, 15


class Medium:
    """Segments that several stores share, and what happens to the next appends."""

    name = "medium"

    def __init__(self, faults: Sequence[str] = ()) -> None:
        self.segments: list[bytes] = []
        self.created = False
        self.faults = iter(faults)
        self.rival: Callable[[], None] = lambda: None

    def connect(self, create: bool) -> Store:
        if not (self.created or create):
            raise MissingStreamError("medium: nothing there")
        self.created = True
        return Store(self)

    def close(self) -> None:
        pass


class Store:
    """One connection to a medium, which breaks as the medium's faults say."""

    def __init__(self, medium: Medium) -> None:
        self.medium = medium
        self.count = len(medium.segments)

    def refresh(self) -> int:
        self.count = len(self.medium.segments)
        return self.count

    def read(self, start: int = 0) -> Iterator[bytes]:
        return iter(self.medium.segments[start : self.count])

    def append(self, position: int, segment: bytes) -> None:
        fault = next(self.medium.faults, "none")
        if fault == "rival":
            self.medium.rival()
        if fault != "away":
            self._store(position, segment)
        if fault in ("away", "unheard"):
            raise StoreUnavailableError(f"{fault}: no answer")
        self.count = position + 1

    def _store(self, position: int, segment: bytes) -> None:
        held = self.medium.segments
        if position == len(held):
            held.append(segment)
        elif held[position] != segment:
            raise ConflictError("another writer was first")

    def close(self) -> None:
        pass


def opened(medium: Medium, seen: Path, key: SigningKey = KEY) -> SharedLog:
    return SharedLog(medium, lambda: Signer(key, None), SeenSegments(seen))


def registers(log: str) -> shared_log.Decide:
    """Register ``log`` whatever is there: a second time is refused."""
    return lambda _: [registered(KEY, log)]


def names(log: SharedLog) -> list[str]:
    events = (record.event for record in log.records())
    return [event.log for event in events if isinstance(event, RunRegistered)]


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["none", "away", "unheard", "rival"]), max_size=12), st.booleans())
def test_what_is_published_stands_there_once(
    tmp_path_factory: pytest.TempPathFactory, faults: list[str], patient: bool
) -> None:
    """Faults of the server and a rival's entries in any order. An update that ended in doubt stands
    there or not after the next; one that ended well stands there, none twice (it is refused)."""
    path = tmp_path_factory.mktemp("seen")
    medium = Medium(faults)
    mine, rival = opened(medium, path / "mine"), opened(medium, path / "rival")
    rivals: list[str] = []

    def cut_in() -> None:
        kept, medium.faults = medium.faults, iter(())
        rivals.append(f"rival-{len(rivals)}")
        rival.update(registers(rivals[-1]))
        medium.faults = kept

    medium.rival = cut_in
    sure, doubtful = [], []
    with mock.patch.object(shared_log, "_RETRY_SECONDS", 0.0):
        for number in range(4):
            name = f"mine-{number}"
            try:
                assert len(mine.update(registers(name), 10.0 if patient else 0.0)) == 1
                sure.append(name)
            except OutcomeUnknownError:
                doubtful.append(name)
            except StoreUnavailableError:
                pass  # It is known not to be there.
        medium.faults = iter(())
        mine.refresh()
    found = names(mine)
    assert len(found) == len(set(found))
    assert set(sure) | set(rivals) <= set(found) <= {*sure, *rivals, *doubtful}
    assert found == names(opened(medium, path / "mine")), "what was seen is what there is"


def test_a_doubtful_update_is_settled_before_the_next_decides(tmp_path: Path) -> None:
    medium = Medium(["none", "unheard"])
    log = opened(medium, tmp_path / "seen")
    log.update(registers("one"))
    with pytest.raises(OutcomeUnknownError, match="is not known"):
        log.update(registers("two"), timeout=0.0)
    asked: list[int] = []

    def decide(records: Sequence[RegistryRecord]) -> list[RunRegistered]:
        asked.append(len(records))
        return []

    assert log.update(decide) == []
    assert asked == [3]
    assert names(log) == ["one", "two"]


def test_what_never_left_is_forgotten(tmp_path: Path) -> None:
    medium = Medium()
    log = opened(medium, tmp_path / "seen")
    with pytest.raises(LogError, match="registered a second time"):
        log.update(lambda _: [registered(KEY), registered(KEY)])
    with pytest.raises(ValueError, match="mine"):
        log.update(lambda _: (_ for _ in ()).throw(ValueError("mine")))
    assert log.records() == ()
    assert not medium.segments


def test_reading_creates_nothing(tmp_path: Path) -> None:
    medium = Medium()
    log = opened(medium, tmp_path / "seen")
    log.refresh()
    assert log.update(lambda _: []) == []
    assert not medium.created


def test_a_stranger_may_not_write(tmp_path: Path) -> None:
    medium = Medium()
    opened(medium, tmp_path / "ann").update(registers("one"))
    with pytest.raises(LogError, match="may not write in the registry: ed25519:.* which admits"):
        opened(medium, tmp_path / "eve", SigningKey.generate()).update(registers("two"))


def test_a_workspace_finds_a_registry_that_went_back(tmp_path: Path) -> None:
    medium = Medium()
    log = opened(medium, tmp_path / "seen")
    log.update(registers("one"))
    before = list(medium.segments)
    log.update(registers("two"))
    medium.segments[:] = before
    for reader in (log, opened(medium, tmp_path / "seen")):
        with pytest.raises(RolledBackError, match="rolled back: it holds 1 segments.*has seen 2"):
            reader.refresh()
    medium.segments.append(b"another")
    with pytest.raises(RolledBackError, match="rewritten: its segment 1 is another"):
        opened(medium, tmp_path / "seen").refresh()
    medium.created, medium.segments[:] = False, []
    with pytest.raises(RolledBackError, match="the registry is gone.*move .*seen away"):
        opened(medium, tmp_path / "seen").update(registers("three"))
    assert not medium.created, "a registry that is gone is not begun anew"
    opened(medium, tmp_path / "nothing-seen").refresh()


def test_what_was_seen_spares_signatures_but_not_to_verify(tmp_path: Path) -> None:
    medium = Medium()
    log = opened(medium, tmp_path / "seen")
    log.update(registers("one"))
    log.verify()
    spoilt = medium.segments[0][:-1] + bytes([medium.segments[0][-1] ^ 1])
    medium.segments[0] = spoilt
    with pytest.raises(BrokenLogError, match="signature does not fit"):
        opened(medium, tmp_path / "nothing-seen").refresh()
    SeenSegments(tmp_path / "spoilt").add(0, [spoilt])
    trusting = opened(medium, tmp_path / "spoilt")
    trusting.refresh()
    with pytest.raises(BrokenLogError, match="signature does not fit"):
        trusting.verify()


def test_what_is_seen_survives_torn_writes_and_sharing(tmp_path: Path) -> None:
    segments = [bytes([n]) * (n + 1) for n in range(5)]
    one, two = (SeenSegments(tmp_path / "seen") for _ in range(2))
    one.add(0, segments[:2])
    two.load()
    two.add(1, segments[1:4])
    one.add(2, segments[2:3])  # the other was first
    with (tmp_path / "seen").open("ab") as file:
        file.write(b"\0\0\0\x05to")
    one.add(4, segments[4:])
    assert SeenSegments(tmp_path / "seen").load() == segments
    (tmp_path / "seen").write_bytes(b"\xff" * 8)
    with pytest.raises(LogError, match="move .*seen away"):
        SeenSegments(tmp_path / "seen").load()
    with pytest.raises(LogError, match="moved away or cut"):
        one.add(5, [b"more"])


def connected(server: UserServer, seen: Path, timeout: float = 5.0) -> SharedLog:
    source = UserSource(Endpoint(server.url), REGISTRY, timeout=timeout)
    return SharedLog(source, lambda: Signer(KEY, None), SeenSegments(seen))


def test_threads_race_and_each_update_stands_once(server: UserServer, tmp_path: Path) -> None:
    def write(writer: int) -> None:
        with connected(server, tmp_path / str(writer)) as log:
            for number in range(UPDATES):
                log.update(registers(f"{writer}-{number}"), 60.0)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert_complete(server, tmp_path)


def assert_complete(server: UserServer, tmp_path: Path) -> None:
    with connected(server, tmp_path / "reader") as log:
        log.refresh()
        found = names(log)
    wanted = [f"{writer}-{number}" for writer in range(WRITERS) for number in range(UPDATES)]
    assert sorted(found) == sorted(wanted)
    for writer in range(WRITERS):
        mine = [name for name in found if name.startswith(f"{writer}-")]
        assert mine == [f"{writer}-{number}" for number in range(UPDATES)]


PROCESS = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from log import test_shared_log as t
t.KEY = t.SigningKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(sys.argv[3])))
class Server: url = sys.argv[1]
with t.connected(Server, Path(sys.argv[2])) as log:
    sys.stdout.write("ready\\n"); sys.stdout.flush(); sys.stdin.readline()
    for number in range(t.UPDATES):
        log.update(t.registers(f"{sys.argv[4]}-{number}"), 60.0)
"""


def test_processes_race_while_the_server_is_killed(server: UserServer, tmp_path: Path) -> None:
    """One workspace for all of them, so they share what was seen."""
    seed = KEY._key.private_bytes_raw().hex()
    arguments = (server.url, str(tmp_path / "reader"), seed)
    writers = [python(PROCESS, *arguments, str(n)) for n in range(WRITERS)]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        for wanted in (5, 12, 20):
            wait_until(lambda wanted=wanted: seen_events(tmp_path) >= wanted, 60)
            server.kill()
            server.start()
        for writer in writers:
            _, told = writer.communicate(timeout=60)
            assert writer.returncode == 0, told
    finally:
        for writer in writers:
            writer.kill()
    assert_complete(server, tmp_path)


def seen_events(tmp_path: Path) -> int:
    return len(SeenSegments(tmp_path / "reader").load())


def test_an_outcome_that_a_server_kept_to_itself_is_found_out(
    server: UserServer, tmp_path: Path
) -> None:
    with connected(server, tmp_path / "seen", timeout=0.5) as log:
        log.update(registers("one"))
        server.signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            log.update(registers("two"), timeout=1.0)
        assert time.monotonic() - began < 30
        server.signal(signal.SIGCONT)
        log.update(lambda rs: [] if "two" in names(log) else [registered(KEY, "two")], 20.0)
        assert names(log) == ["one", "two"]


def test_a_store_that_was_put_back_is_found_out(server: UserServer, tmp_path: Path) -> None:
    with connected(server, tmp_path / "seen") as log:
        log.update(registers("one"))
        server.kill()
        shutil.copytree(server.directory / "store", tmp_path / "older")
        server.start()
        log.update(registers("two"), 20.0)
    server.kill()
    shutil.rmtree(server.directory / "store")
    shutil.copytree(tmp_path / "older", server.directory / "store")
    server.start()
    with (
        connected(server, tmp_path / "seen") as log,
        pytest.raises(RolledBackError, match="rolled back: it holds 1 segments"),
    ):
        log.update(registers("three"))
    with connected(server, tmp_path / "another") as log:
        log.update(registers("three"))
    with (
        connected(server, tmp_path / "seen") as log,
        pytest.raises(RolledBackError, match="rewritten"),
    ):
        log.refresh()
