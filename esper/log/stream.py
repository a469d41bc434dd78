"""A log's stream and its settings: nothing ages, nothing is dropped, nothing can be deleted."""

from __future__ import annotations

import re
from typing import Final

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from esper.log.errors import LogError
from esper_events.registry import REGISTRY

_LOG_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_UNLIMITED: Final = -1

RUN_STREAM = "ESPER_RUN_"
"""What the name of a run's stream begins with; the log id follows."""


def check_log_id(log: str) -> None:
    """Raise ``LogError`` unless a run's log can have the id ``log``: it becomes part of a subject
    and of a file name."""
    if log == REGISTRY:
        raise LogError(f"log id: {REGISTRY!r} is that of the log which all runs share")
    if not _LOG_ID.fullmatch(log):
        raise LogError(
            f"log id: got {log!r}, wanted 1 to 64 letters, digits, underscores or hyphens"
        )


def stream_name(log: str) -> str:
    """The stream of the log with this id."""
    if log == REGISTRY:
        return "ESPER_REGISTRY"
    check_log_id(log)
    return f"{RUN_STREAM}{log}"


def subject(log: str) -> str:
    """The only subject of that stream."""
    return "esper.registry" if log == REGISTRY else f"esper.run.{log}"


def wanted_config(log: str, replicas: int) -> StreamConfig:
    """The configuration to create the stream with."""
    return StreamConfig(
        name=stream_name(log),
        subjects=[subject(log)],
        retention=RetentionPolicy.LIMITS,
        max_consumers=_UNLIMITED,
        max_msgs=_UNLIMITED,
        max_bytes=_UNLIMITED,
        max_age=0,
        max_msgs_per_subject=_UNLIMITED,
        max_msg_size=_UNLIMITED,
        discard=DiscardPolicy.NEW,
        storage=StorageType.FILE,
        num_replicas=replicas,
        no_ack=False,
        sealed=False,
        deny_delete=True,
        deny_purge=True,
        allow_rollup_hdrs=False,
        allow_direct=True,
    )


_PROVED = (
    "subjects",
    "retention",
    "max_msgs",
    "max_bytes",
    "max_age",
    "max_msgs_per_subject",
    "max_msg_size",
    "discard",
    "storage",
    "no_ack",
    "sealed",
    "deny_delete",
    "deny_purge",
    "allow_rollup_hdrs",
    "allow_direct",
)
_ABSENT = ("mirror", "sources", "subject_transform", "allow_msg_ttl", "allow_msg_schedules")


def differences(got: StreamConfig, wanted: StreamConfig) -> list[str]:
    """What the server has otherwise than asked, one line each; empty when the stream is proved.

    The number of replicas is the operator's to raise, and so is not compared.
    """
    found = [
        f"{name} is {getattr(got, name)!r}, wanted {getattr(wanted, name)!r}"
        for name in _PROVED
        if getattr(got, name) != getattr(wanted, name)
    ]
    found += [f"{name} is set" for name in _ABSENT if getattr(got, name)]
    if got.persist_mode not in (None, "default"):
        found.append(f"persist_mode is {got.persist_mode!r}, wanted 'default'")
    return found
