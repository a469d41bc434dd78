"""The queue and the registry of one server, found again when they are lost."""

from __future__ import annotations

from esper.log.endpoint import Endpoint
from esper.log.queue import JobQueue
from esper.log.registry import open_registry
from esper.log.server import EmbeddedServer
from esper.log.shared_log import Decide
from esper.log.workspace import Workspace
from esper.projections.registry import RegistryState
from esper.tolaria.daemon.rulings import Reading
from esper_events.registry import RegistryEvent

_TIMEOUT_SECONDS = 5.0


class Link:
    """What daemon and commands have to do with a server: the workspace's own, or at ``nats``.

    ``lease`` is what the queue's is to be, None for the one that it has. Nothing is asked of a
    server before the first call; each raises ``LogError``, and connects anew after ``lost``.
    """

    def __init__(self, workspace: Workspace, nats: str | None, lease: float | None = None) -> None:
        self.registry = open_registry(workspace, nats)
        self.reading = Reading()
        self._user = None if nats is None else Endpoint.of_user(nats)
        self._server: EmbeddedServer | None = None
        self._workspace = workspace
        self._lease = lease
        self._queue: JobQueue | None = None

    @property
    def queue(self) -> JobQueue:
        """The queue, connected."""
        if self._queue is None:
            self._queue = JobQueue(self._endpoint(), lease=self._lease, timeout=_TIMEOUT_SECONDS)
        return self._queue

    def _endpoint(self) -> Endpoint:
        if self._user is not None:
            return self._user
        if self._server is None:
            self._server = self._workspace.attach_server()
        return self._server.endpoint()

    def state(self) -> RegistryState:
        """What the registry tells now."""
        self.registry.refresh(_TIMEOUT_SECONDS)
        return self.reading.of(self.registry.records())

    def update(self, decide: Decide) -> list[RegistryEvent]:
        """Write in the registry what ``decide`` chooses; what was written."""
        written = self.registry.update(decide, _TIMEOUT_SECONDS)
        return [record.event for record in written]

    def lost(self) -> None:
        """Connect anew with the next call."""
        if self._queue is not None:
            self._queue.close()
            self._queue = None

    def close(self) -> None:
        """Let go of connections and server."""
        self.lost()
        self.registry.close()
        if self._server is not None:
            self._server.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
