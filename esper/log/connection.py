"""One NATS connection on an event loop of its own, offered as calls that end in time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from esper.log.endpoint import Endpoint
from esper.log.errors import LogError, RefusedError, StoreError, StoreUnavailableError

T = TypeVar("T")

_GRACE_SECONDS = 1.0
"""How much longer than its own deadline a call may keep its thread waiting."""


class Connection:
    """A connection that is never repaired: when it is lost, its owner makes another.

    Every call has a deadline of ``timeout`` seconds, since futures of nats-py may have none. No
    callback of nats-py prints anything. Raises ``StoreUnavailableError``.
    """

    def __init__(self, endpoint: Endpoint, *, timeout: float = 5.0) -> None:
        self.name = endpoint.name
        self.timeout = timeout
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_ignore)
        self._thread = threading.Thread(target=self._run, name="esper-nats", daemon=True)
        self._thread.start()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._last_error: Exception | None = None
        self._client = Client()
        self.js: JetStreamContext = self._client.jetstream(timeout=timeout)
        try:
            self.call(lambda: self._connect(endpoint))
        except LogError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise StoreError(f"{self.name}: unusable credentials or URL: {error}") from error

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _connect(self, endpoint: Endpoint) -> None:
        await self._client.connect(
            endpoint.url,
            error_cb=self._hear_error,
            closed_cb=self._hear_closed,
            name="esper",
            allow_reconnect=False,
            connect_timeout=2,
            reconnect_time_wait=0,
            max_reconnect_attempts=1,
            ping_interval=20,
            tls=endpoint.tls(),
            user_credentials=None if endpoint.credentials is None else str(endpoint.credentials),
            nkeys_seed=None if endpoint.nkey is None else str(endpoint.nkey),
            nkeys_seed_str=endpoint.seed,
        )

    async def _hear_error(self, error: Exception) -> None:
        """Kept for the message of the call that fails; nats-py by itself would print it."""
        self._last_error = error

    async def _hear_closed(self) -> None:
        if not self._gone.done():
            self._gone.set_result(None)

    @property
    def max_payload(self) -> int:
        """Bytes that the server takes in one message."""
        return self._client.max_payload

    @property
    def lost(self) -> bool:
        """Whether the connection is known to be gone."""
        return not self._client.is_connected

    def request(self, subject: str, payload: bytes = b"") -> bytes:
        """The data of the first answer to ``payload`` on ``subject``."""
        return self.ask(subject, payload).data

    def ask(self, subject: str, payload: bytes = b"") -> Msg:
        """The first answer to ``payload`` on ``subject``, with its headers.

        It comes to an inbox of its own: what a consumer hands out keeps its subject, by which the
        shared one of nats-py would not know it.
        """
        ask, timeout = self._client.request, self.timeout
        return self.call(lambda: ask(subject, payload, timeout=timeout, old_style=True))

    def say(self, subject: str, payload: bytes) -> None:
        """Publish ``payload``; the server has read it when this returns."""

        async def publish() -> None:
            await self._client.publish(subject, payload)
            await self._client.flush()

        self.call(publish)

    def call(self, work: Callable[[], Awaitable[T]], timeout: float | None = None) -> T:
        """Run ``work`` on the loop, for ``timeout`` seconds at most where that is another time than
        the connection's; raises ``RefusedError`` for an answer that is a refusal."""
        limit = self.timeout if timeout is None else timeout
        waiting = self._deadline(work, limit)
        try:
            future = asyncio.run_coroutine_threadsafe(waiting, self._loop)
        except RuntimeError as error:
            waiting.close()
            raise StoreUnavailableError(f"{self.name}: the connection is closed") from error
        try:
            return future.result(limit + _GRACE_SECONDS)
        except ServiceUnavailableError as error:
            raise StoreUnavailableError(f"{self.name}: JetStream is not available") from error
        except NoStreamResponseError as error:
            raise StoreUnavailableError(f"{self.name}: no stream answered") from error
        except APIError as error:
            raise _refusal(self.name, error) from error
        except TimeoutError as error:
            future.cancel()
            raise StoreUnavailableError(f"{self.name}: no answer within {limit:g} s") from error
        except nats.errors.NoServersError as error:
            reason = self._last_error or error
            raise StoreUnavailableError(f"{self.name}: cannot connect: {reason}") from error
        except (nats.errors.Error, OSError) as error:
            raise StoreUnavailableError(f"{self.name}: {error or type(error).__name__}") from error

    async def _deadline(self, work: Callable[[], Awaitable[T]], limit: float) -> T:
        """The result of ``work``; nats-py itself goes on waiting when the connection is closed."""
        task = asyncio.ensure_future(work())
        either: set[asyncio.Future[Any]] = {task, self._gone}
        first = asyncio.FIRST_COMPLETED
        await asyncio.wait(either, timeout=limit, return_when=first)
        if task.done():
            return task.result()
        task.cancel()
        if self._gone.done():
            raise nats.errors.ConnectionClosedError
        raise TimeoutError

    def close(self) -> None:
        """Close the connection and end the loop, whatever state they are in."""
        if self._loop.is_closed():
            return
        ending = asyncio.run_coroutine_threadsafe(self._finish(), self._loop)
        try:
            ending.result(2 * _GRACE_SECONDS)
        except TimeoutError:
            ending.cancel()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_GRACE_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    async def _finish(self) -> None:
        """Close, then cancel what nats-py left running: a pending task would be reported."""
        try:
            await asyncio.wait_for(self._client.close(), _GRACE_SECONDS)
        except (TimeoutError, nats.errors.Error, OSError, AssertionError) as error:
            # nats-py asserts where its connection never began.
            self._last_error = error
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _refusal(name: str, error: APIError) -> RefusedError:
    """The answer to a direct get carries its code in its class alone."""
    code = 404 if isinstance(error, NotFoundError) else error.code or 0
    reason = error.description or type(error).__name__
    return RefusedError(f"{name}: {reason}", code, error.err_code or 0)


def _ignore(_: asyncio.AbstractEventLoop, __: dict[str, object]) -> None:
    """Errors reach the caller through its own call; asyncio would print those of other tasks."""
