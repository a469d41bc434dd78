"""The queue of jobs, on a real server."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from esper.log.connection import Connection
from esper.log.endpoint import Endpoint
from esper.log.errors import LogError, StoreUnavailableError
from esper.log.queue import STREAM, Delivery, JobQueue
from support.log_runs import UserServer, wait_until

LEASE = 1.0


@pytest.fixture
def connect(server: UserServer) -> Iterator[Callable[[], JobQueue]]:
    opened: list[JobQueue] = []

    def connect() -> JobQueue:
        opened.append(JobQueue(Endpoint(server.url), lease=LEASE, timeout=3.0))
        return opened[-1]

    yield connect
    for queue in opened:
        queue.close()


def taken(queue: JobQueue) -> Delivery:
    """The next job; there has to be one before long."""
    found: list[Delivery] = []

    def take() -> bool:
        found.extend(filter(None, [queue.take(0.5)]))
        return bool(found)

    wait_until(take, 30)
    return found[0]


def test_a_job_is_in_it_once_and_handed_out_once(connect: Callable[[], JobQueue]) -> None:
    one, other = connect(), connect()
    for queue in (one, other):
        queue.publish("a")
    assert one.jobs() == {"a"}
    delivery = taken(one)
    assert (delivery.job, delivery.attempt) == ("a", 1)
    assert other.take(0.05) is None
    one.publish("a")
    assert one.jobs() == {"a"}, "while it is handed out it is still there"
    one.finish(delivery)
    wait_until(lambda: not one.jobs())
    one.publish("a")
    assert taken(other).attempt == 1, "what has left it can come again"


def test_a_silent_holder_loses_the_job_and_one_that_beats_keeps_it(
    connect: Callable[[], JobQueue],
) -> None:
    one, other = connect(), connect()
    one.publish("quiet")
    one.publish("loud")
    first, second = taken(one), taken(one)
    kept, lost = (first, second) if first.job == "loud" else (second, first)
    found: list[Delivery] = []

    def come_again() -> bool:
        one.beat(kept)
        found.extend(filter(None, [other.take(0.1)]))
        return bool(found)

    wait_until(come_again, 30)
    assert (found[0].job, found[0].attempt) == (lost.job, 2)


def test_a_job_that_is_put_back_comes_again(connect: Callable[[], JobQueue]) -> None:
    queue = connect()
    queue.publish("a")
    queue.put_back(taken(queue))
    again = taken(queue)
    assert again.attempt == 2
    asked = time.monotonic()
    queue.put_back(again, delay=0.5)
    assert taken(queue).attempt == 3
    assert time.monotonic() - asked > 0.5


def test_the_lease_is_the_queues(server: UserServer) -> None:
    one = JobQueue(Endpoint(server.url), lease=2.0)
    assert JobQueue(Endpoint(server.url)).lease == 2.0
    assert JobQueue(Endpoint(server.url), lease=5.0).lease == 5.0
    assert JobQueue(Endpoint(server.url)).lease == 5.0
    one.close()


def test_what_is_told_of_a_job_is_there_for_all(connect: Callable[[], JobQueue]) -> None:
    one, other = connect(), connect()
    assert other.told("a") is None
    one.tell("a", b"step 1")
    one.tell("a", b"step 2")
    assert other.told("a") == b"step 2"


def test_a_queue_that_is_lost_or_away_is_told(
    server: UserServer, connect: Callable[[], JobQueue]
) -> None:
    queue = connect()
    queue.publish("a")
    delivery = taken(queue)
    operator = Connection(Endpoint(server.url))
    operator.call(lambda: operator.js.delete_stream(STREAM))
    operator.close()
    for work in (lambda: queue.beat(delivery), lambda: queue.take(0.1), queue.jobs):
        with pytest.raises(LogError):
            work()
    again = connect()
    assert again.jobs() == set()
    again.publish("a")
    server.signal(signal.SIGSTOP)
    with pytest.raises(StoreUnavailableError, match="no answer"):
        again.take(0.1)


def test_a_stream_that_is_no_queue_is_refused(server: UserServer) -> None:
    operator = Connection(Endpoint(server.url))
    operator.call(lambda: operator.js.add_stream(name=STREAM, subjects=["esper.jobs.*"]))
    operator.close()
    with pytest.raises(LogError, match="no queue of jobs"):
        JobQueue(Endpoint(server.url))


def test_a_closed_connection_is_unavailable(connect: Callable[[], JobQueue]) -> None:
    queue = connect()
    queue.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        queue.jobs()
