"""The server's copy: settings proved, unknown outcomes resolved, damage and rivals seen."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
from nats.js.api import DiscardPolicy, StorageType, StreamConfig

from esper.log import stream
from esper.log.connection import Connection
from esper.log.durability import is_proved
from esper.log.endpoint import Endpoint
from esper.log.errors import ConflictError, LogError, StoreError, StoreUnavailableError
from esper.log.jetstream import JetStreamStore
from esper_events.keys import SigningKey
from support.log_runs import UserServer, free_port, sealed


def test_the_server_itself_shows_the_settings_of_the_stream(shared_server: UserServer) -> None:
    JetStreamStore(Endpoint(shared_server.url), "proof").close()
    connection = Connection(Endpoint(shared_server.url))
    config = connection.call(lambda: connection.js.stream_info("ESPER_RUN_proof")).config
    connection.close()
    assert config.subjects == ["esper.run.proof"]
    assert (config.storage, config.discard) == (StorageType.FILE, DiscardPolicy.NEW)
    assert (config.deny_delete, config.deny_purge, config.allow_rollup_hdrs) == (True, True, False)
    assert (config.max_msgs, config.max_bytes, config.max_age) == (-1, -1, 0)
    assert (config.max_msgs_per_subject, config.max_msg_size) == (-1, -1)
    assert stream.differences(config, stream.wanted_config("proof", 1)) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"max_msgs": 10}, "max_msgs is 10, wanted -1"),
        ({"max_age": 60.0}, "max_age is 60.0, wanted 0"),
        ({"discard": DiscardPolicy.OLD}, "discard is 'old'"),
        ({"storage": StorageType.MEMORY}, "storage is 'memory'"),
        ({"deny_delete": False}, "deny_delete is False, wanted True"),
        ({"deny_purge": False}, "deny_purge is False, wanted True"),
        ({"allow_direct": False}, "allow_direct is False, wanted True"),
        ({"subjects": ["esper.run.x", "other"]}, "subjects is"),
    ],
)
def test_a_stream_with_other_settings_is_refused(
    shared_server: UserServer,
    fresh_log: Callable[[], str],
    change: dict[str, Any],
    complaint: str,
) -> None:
    log = fresh_log()
    if "subjects" in change:
        change = {"subjects": [stream.subject(log), f"other.{log}"]}
    config: StreamConfig = stream.wanted_config(log, 1).evolve(**change)
    connection = Connection(Endpoint(shared_server.url))
    connection.call(lambda: connection.js.add_stream(config))
    connection.close()
    with pytest.raises(StoreError, match="not safe for a log") as caught:
        JetStreamStore(Endpoint(shared_server.url), log)
    assert complaint in str(caught.value)


def test_a_rival_is_refused_and_told_so(
    shared_server: UserServer, fresh_log: Callable[[], str], key: SigningKey
) -> None:
    log = fresh_log()
    mine, rival = (JetStreamStore(Endpoint(shared_server.url), log) for _ in range(2))
    mine.append(0, sealed(key, 1)[0])
    with pytest.raises(ConflictError, match="another writer has this run"):
        rival.append(0, sealed(SigningKey.generate(), 1)[0])
    assert list(mine.read()) == sealed(key, 1)
    mine.close()
    rival.close()


def test_a_lost_acknowledgement_is_resolved_by_what_the_server_holds(
    shared_server: UserServer, fresh_log: Callable[[], str], key: SigningKey
) -> None:
    """The message was stored, its answer was not heard: trying again finds it there."""
    log = fresh_log()
    segments = sealed(key, 2)
    first, second = (JetStreamStore(Endpoint(shared_server.url), log) for _ in range(2))
    first.append(0, segments[0])
    second.append(0, segments[0])
    assert (first.count, second.count) == (1, 1)
    second.append(1, segments[1])
    assert list(second.read()) == segments
    first.close()
    second.close()


def test_a_publish_without_an_answer_ends_in_time_and_can_be_repeated(
    server: UserServer, key: SigningKey
) -> None:
    segments = sealed(key, 3)
    store = JetStreamStore(Endpoint(server.url), "r", timeout=0.5)
    store.append(0, segments[0])
    server.signal(signal.SIGSTOP)
    with pytest.raises(StoreUnavailableError, match="no answer within"):
        store.append(1, segments[1])
    server.signal(signal.SIGCONT)
    store.append(1, segments[1])
    store.append(2, segments[2])
    assert list(store.read()) == segments
    store.close()


def test_a_gap_is_seen(
    shared_server: UserServer, fresh_log: Callable[[], str], key: SigningKey
) -> None:
    """An administrator can delete messages by way of an update; a damaged block loses them."""
    log = fresh_log()
    segments = sealed(key, 4)
    store = JetStreamStore(Endpoint(shared_server.url), log)
    for position, segment in enumerate(segments):
        store.append(position, segment)
    connection = Connection(Endpoint(shared_server.url))
    open_config = stream.wanted_config(log, 1).evolve(max_msgs=3, discard=DiscardPolicy.OLD)
    connection.call(lambda: connection.js.update_stream(open_config))
    connection.call(lambda: connection.js.update_stream(stream.wanted_config(log, 1)))
    connection.close()
    with pytest.raises(StoreError, match="segment 0 is missing"):
        list(store.read())
    store.close()
    with pytest.raises(StoreError, match="lost 1 of 4 segments"):
        JetStreamStore(Endpoint(shared_server.url), log)


def test_a_segment_over_the_servers_limit_names_the_limit(
    shared_server: UserServer, fresh_log: Callable[[], str]
) -> None:
    store = JetStreamStore(Endpoint(shared_server.url), fresh_log())
    with pytest.raises(StoreError, match="raise max_payload"):
        store.append(0, bytes(2 << 20))
    store.close()


def test_a_server_that_is_not_there_is_told_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StoreUnavailableError, match="127.0.0.1"):
        JetStreamStore(Endpoint(f"nats://user:secret@127.0.0.1:{free_port()}"), "r")
    out, err = capfd.readouterr()
    assert out + err == ""


def test_no_error_shows_a_password(server: UserServer) -> None:
    endpoint = Endpoint.of_user(server.url.replace("//", "//user:secret@"))
    store = JetStreamStore(endpoint, "r", timeout=1)
    server.kill()
    with pytest.raises(LogError) as caught:
        store.append(0, b"segment")
    assert "secret" not in str(caught.value) + repr(endpoint) + endpoint.name
    store.close()


@pytest.mark.parametrize("log", ["", "a b", "a.b", "a/b", "*", "x" * 65, "run>"])
def test_a_log_id_that_is_no_name_is_refused(log: str) -> None:
    with pytest.raises(LogError, match="log id"):
        stream.check_log_id(log)


@pytest.mark.parametrize("url", ["localhost:4222", "http://h:1", "nats://", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(LogError, match="wanted one like nats"):
        Endpoint.of_user(url)


def test_the_monitoring_url_proves_that_a_server_syncs(shared_server: UserServer) -> None:
    assert is_proved(Endpoint(shared_server.url, monitor=shared_server.monitor))
    assert not is_proved(Endpoint(shared_server.url))
    assert not is_proved(Endpoint(shared_server.url, monitor="http://127.0.0.1:1"))
    assert not is_proved(Endpoint(shared_server.url, monitor="file:///etc"))
