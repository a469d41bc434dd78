"""The two places a replica can be: the workspace's embedded server, or a server of the user's."""

from __future__ import annotations

import time

from esper.log.damaged import Kept, set_aside
from esper.log.durability import prove_embedded
from esper.log.endpoint import Endpoint
from esper.log.errors import StoreUnavailableError
from esper.log.jetstream import JetStreamStore
from esper.log.server import EmbeddedServer, find_binary
from esper.log.stream import stream_name
from esper.log.workspace import Workspace

_RETRY_SECONDS = 0.05


class EmbeddedSource:
    """Stores on the embedded server, which is started, or started again, when it is not there."""

    name = "embedded"

    def __init__(self, server: EmbeddedServer, log: str, *, timeout: float = 5.0) -> None:
        self._server = server
        self._log = log
        self._timeout = timeout

    def connect(self, create: bool = True) -> JetStreamStore:
        """A store on a server that was proved to sync; raises ``LogError``."""
        deadline = time.monotonic() + self._timeout
        while True:
            endpoint = self._server.endpoint()
            try:
                prove_embedded(endpoint, timeout=self._timeout)
                return JetStreamStore(endpoint, self._log, timeout=self._timeout, create=create)
            except StoreUnavailableError:
                # A server that was just killed is still published for a moment.
                if time.monotonic() > deadline:
                    raise
            time.sleep(_RETRY_SECONDS)

    def set_aside(self) -> Kept | None:
        """Move the log's stream, which is damaged, out of the server's way, so that the next
        connection begins it anew; None where it has no files. Raises ``ServerError`` while others
        use the server."""
        self._server.close()
        return set_aside(self._server.directory, stream_name(self._log))

    def close(self) -> None:
        """Give up the share in the server."""
        self._server.close()


class UserSource:
    """Stores on a server that somebody else runs."""

    def __init__(self, endpoint: Endpoint, log: str, *, timeout: float = 5.0) -> None:
        self.name = endpoint.name
        self._endpoint = endpoint
        self._log = log
        self._timeout = timeout

    def connect(self, create: bool = True) -> JetStreamStore:
        """A store on the user's server; raises ``LogError``."""
        return JetStreamStore(self._endpoint, self._log, timeout=self._timeout, create=create)

    def close(self) -> None:
        """Nothing is held between connections."""


def source_for(log: str, workspace: Workspace, nats: str | None) -> EmbeddedSource | UserSource:
    """The user's server at the URL ``nats``, or the workspace's own.

    Raises ``LogError`` for a URL that is none, or when there is no nats-server to start.
    """
    if nats is not None:
        return UserSource(Endpoint.of_user(nats), log)
    find_binary()
    return EmbeddedSource(workspace.attach_server(), log)
