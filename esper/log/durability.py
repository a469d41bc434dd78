"""Does the server sync every message to disk before it acknowledges it? Only it can say.

An ordinary client cannot see ``sync_always``; a system account or the monitoring URL can.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import replace
from typing import Any

from esper.log.connection import Connection
from esper.log.endpoint import Endpoint
from esper.log.errors import ServerError

_VARZ_SUBJECT = "$SYS.REQ.SERVER.PING.VARZ"
_MONITOR_SECONDS = 5.0


def prove_embedded(endpoint: Endpoint, *, timeout: float = 5.0) -> None:
    """Ask the embedded server by its system account; raises ``ServerError`` unless it syncs."""
    connection = Connection(replace(endpoint, seed=endpoint.system_seed), timeout=timeout)
    try:
        varz = json.loads(connection.request(_VARZ_SUBJECT))["data"]
    finally:
        connection.close()
    if not _syncs(varz):
        raise ServerError(
            f"{endpoint.name}: nats-server {varz.get('version')} does not sync every message "
            "(jetstream.config.sync_always); version 2.14 or later is wanted"
        )


def is_proved(endpoint: Endpoint) -> bool:
    """Whether the monitoring URL of a user's server shows that it syncs every message."""
    if endpoint.monitor is None:
        return False
    url = endpoint.monitor.rstrip("/") + "/varz"
    if not url.startswith(("http://", "https://")):
        return False
    try:
        with urllib.request.urlopen(url, timeout=_MONITOR_SECONDS) as answer:
            return _syncs(json.load(answer))
    except (OSError, ValueError, urllib.error.URLError):
        return False


def _syncs(varz: dict[str, Any]) -> bool:
    config = varz.get("jetstream", {}).get("config") or {}
    return config.get("sync_always") is True
