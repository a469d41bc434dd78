"""The work queue that hands jobs out to daemons, and what they tell of their progress.

A message is the id of a job and nothing else: what the job is, who has it and whether it has ended
stands in the registry, which decides. What is lost here is put back from there, and what is handed
out twice is recognised there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from nats.aio.msg import Msg
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    Header,
    KeyValueConfig,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import KeyNotFoundError
from nats.js.kv import KeyValue

from esper.log.connection import Connection
from esper.log.endpoint import Endpoint
from esper.log.errors import RefusedError, StoreError
from esper.log.stream import check_log_id

STREAM = "ESPER_JOBS"
PREFIX = "esper.jobs"
CONSUMER = "daemons"
PROGRESS = "ESPER_PROGRESS"
DEFAULT_LEASE = 60.0

_SHORTEST_TIMEOUT = 1.0
_NOT_FOUND = 404
_IS_THERE = frozenset({10071, 10164})
"""JetStream's refusals of a message that does not follow the one it names."""
_WANTED = StreamConfig(
    name=STREAM,
    subjects=[f"{PREFIX}.*"],
    retention=RetentionPolicy.WORK_QUEUE,
    storage=StorageType.FILE,
    discard=DiscardPolicy.NEW,
)
_PROVED = ("subjects", "retention", "storage", "discard")


@dataclass(frozen=True)
class Delivery:
    """A job that was handed out, for the ``attempt``-th time (from 1); it is handed out again
    when the lease ends without a sign of life. ``reply`` is where to answer."""

    job: str
    attempt: int
    reply: str


class JobQueue:
    """One connection to the queue of a server; both are created when they are missing.

    ``lease`` is how many seconds a delivery holds without a sign of life; it belongs to the queue,
    whoever connects: None takes it as it is.

    Every call raises ``StoreUnavailableError`` when the server does not answer within ``timeout``
    seconds, and ``StoreError`` when it refuses. The connection is never repaired: make another.
    """

    def __init__(
        self, endpoint: Endpoint, *, lease: float | None = None, timeout: float = 5.0
    ) -> None:
        self.name = endpoint.name
        self._connection = Connection(endpoint, timeout=timeout)
        try:
            self._open()
            self.lease = self._consumer(lease)
            # Several calls have to fit into one lease.
            self._connection.timeout = min(timeout, max(_SHORTEST_TIMEOUT, self.lease / 3))
            self._progress = self._open_progress()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        js = self._connection.js
        try:
            info = self._connection.call(lambda: js.stream_info(STREAM))
        except RefusedError as error:
            if error.code != _NOT_FOUND:
                raise
            info = self._connection.call(lambda: js.add_stream(_WANTED))
        wrong = [name for name in _PROVED if getattr(info.config, name) != getattr(_WANTED, name)]
        if wrong:
            raise StoreError(
                f"{self.name}: stream {STREAM} is no queue of jobs, other settings were wanted for "
                f"{', '.join(wrong)}: remove it, the registry knows what waits"
            )

    def _consumer(self, lease: float | None) -> float:
        """Make it, or change its lease where one is given; the lease that holds."""
        js = self._connection.js
        try:
            info = self._connection.call(lambda: js.consumer_info(STREAM, CONSUMER))
        except RefusedError as error:
            if error.code != _NOT_FOUND:
                raise
        else:
            there = float(info.config.ack_wait or DEFAULT_LEASE)
            if lease in (None, there):
                return there
        wanted = ConsumerConfig(
            durable_name=CONSUMER,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=lease or DEFAULT_LEASE,
            max_deliver=-1,
            max_ack_pending=-1,
        )
        self._connection.call(lambda: js.add_consumer(STREAM, wanted))
        return float(wanted.ack_wait or DEFAULT_LEASE)

    def _open_progress(self) -> KeyValue:
        js = self._connection.js
        config = KeyValueConfig(bucket=PROGRESS, history=1)
        return self._connection.call(lambda: js.create_key_value(config))

    def jobs(self) -> frozenset[str]:
        """The jobs that have a message, whether it is handed out or waits."""
        js = self._connection.js
        info = self._connection.call(lambda: js.stream_info(STREAM, subjects_filter=">"))
        return frozenset(name.removeprefix(f"{PREFIX}.") for name in info.state.subjects or {})

    def idle(self) -> bool:
        """Whether a daemon waits for work at this moment."""
        js = self._connection.js
        info = self._connection.call(lambda: js.consumer_info(STREAM, CONSUMER))
        return bool(info.num_waiting)

    def publish(self, job: str) -> None:
        """Let ``job`` be handed out, unless it has a message already: by its subject, which is
        empty before, and not by a message id, which is forgotten after a while."""
        check_log_id(job)
        js = self._connection.js
        first = {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: "0"}
        try:
            self._connection.call(
                lambda: js.publish(f"{PREFIX}.{job}", job.encode(), headers=first)
            )
        except RefusedError as error:
            if error.err_code not in _IS_THERE:
                raise

    def take(self, wait: float) -> Delivery | None:
        """The next job, or None when none has come within ``wait`` seconds."""
        wait = min(wait, self._connection.timeout / 2)
        wanted = json.dumps({"batch": 1, "expires": int(wait * 1e9)}).encode()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{CONSUMER}"
        message = self._connection.ask(subject, wanted)
        status = (message.headers or {}).get("Status")
        if status in ("404", "408"):
            return None
        if status is not None:
            reason = (message.headers or {}).get("Description", status)
            raise StoreError(f"{self.name}: the queue hands nothing out: {reason}")
        return _delivery(message)

    def beat(self, delivery: Delivery) -> None:
        """A sign of life: the lease of this delivery has begun anew when this returns."""
        self._connection.ask(delivery.reply, b"+WPI")

    def finish(self, delivery: Delivery) -> None:
        """The job needs nobody any more: take its message out of the queue.

        A message that the queue has lost is not answered for; one that stays is handed out again,
        and found out to be finished. So no answer is waited for.
        """
        self._connection.say(delivery.reply, b"+ACK")

    def put_back(self, delivery: Delivery, delay: float = 0.0) -> None:
        """Let the job be handed out again, to anybody, after ``delay`` seconds."""
        told = json.dumps({"delay": int(delay * 1e9)})
        self._connection.say(delivery.reply, f"-NAK {told}".encode())

    def tell(self, job: str, progress: bytes) -> None:
        """Keep what is known of the progress of ``job``, in place of what was."""
        self._connection.call(lambda: self._progress.put(job, progress))

    def told(self, job: str) -> bytes | None:
        """What was told last of the progress of ``job``; None where nothing is known."""

        async def ask() -> bytes | None:
            try:
                return (await self._progress.get(job)).value
            except KeyNotFoundError:
                return None

        return self._connection.call(ask)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _delivery(message: Msg) -> Delivery:
    job = message.subject.removeprefix(f"{PREFIX}.")
    return Delivery(job, message.metadata.num_delivered, message.reply)
