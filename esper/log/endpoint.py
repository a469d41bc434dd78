"""Where a NATS server is and how to be let in."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from esper.log.errors import LogError


@dataclass(frozen=True)
class Endpoint:
    """A server's URL with what authenticates a client to it.

    ``seed`` is an nkey seed; ``credentials`` and ``nkey`` name files in the formats of NATS;
    ``ca`` is a PEM file for a server with a private certificate; ``monitor`` is the base of the
    server's HTTP monitoring, by which ``sync_always`` can be proved.
    """

    url: str = field(repr=False)
    seed: str | None = field(default=None, repr=False)
    system_seed: str | None = field(default=None, repr=False)
    credentials: Path | None = None
    nkey: Path | None = None
    ca: Path | None = None
    monitor: str | None = None

    @classmethod
    def of_user(cls, url: str) -> Endpoint:
        """A server of the user's; ``ESPER_NATS_CREDS``, ``_NKEY``, ``_CA`` and ``_MONITOR`` of the
        environment complete the URL, which may itself hold a user and password or a token."""
        parts = urlsplit(url)
        if parts.scheme not in ("nats", "tls", "ws", "wss") or not parts.hostname:
            raise LogError(
                f"nats: got a URL with scheme {parts.scheme!r} and host {parts.hostname!r}, "
                "wanted one like nats://127.0.0.1:4222 or tls://host:4222"
            )
        return cls(
            url=url,
            credentials=_path("ESPER_NATS_CREDS"),
            nkey=_path("ESPER_NATS_NKEY"),
            ca=_path("ESPER_NATS_CA"),
            monitor=os.environ.get("ESPER_NATS_MONITOR") or None,
        )

    @property
    def name(self) -> str:
        """The address without user, password or token."""
        parts = urlsplit(self.url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}"

    def tls(self) -> ssl.SSLContext | None:
        """The TLS settings, or None to let the URL's scheme decide."""
        return None if self.ca is None else ssl.create_default_context(cafile=str(self.ca))


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    if not value:
        return None
    path = Path(value).expanduser()
    if not path.is_file():
        raise LogError(f"{variable}: {path} is not a file")
    return path
