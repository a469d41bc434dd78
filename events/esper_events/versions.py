"""Which version of Esper wrote a log, and whether that is newer than this one."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from esper_events import __version__

_RELEASE = re.compile(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})")
_decoder = msgspec.msgpack.Decoder(dict[str, Any])


def is_newer(version: str) -> bool:
    """Whether ``version`` comes after this one; what is no version does not."""
    return _release(version) > _release(__version__)


def version_in(data: bytes) -> str:
    """What ``data``, which may be a log's first event, calls its writer's version; "" if nothing.

    It is unchecked: good for a message, and for choosing how to read.
    """
    try:
        version = _decoder.decode(data).get("version")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""
    return version if isinstance(version, str) else ""


def _release(version: str) -> tuple[int, ...]:
    found = _RELEASE.match(version)
    return tuple(map(int, found.groups())) if found else ()
