"""Append, read and copy the log of a run: memory, journal, JetStream, embedded server."""

from __future__ import annotations

from esper.log.errors import LogError
from esper.log.event_log import EventLog, LogSummary
from esper.log.memory import MemoryStore
from esper.log.replica import ReplicaState
from esper.log.run import open_run_log
from esper.log.ticket import Ticket
from esper.log.workspace import Workspace

__all__ = [
    "EventLog",
    "LogError",
    "LogSummary",
    "MemoryStore",
    "ReplicaState",
    "Ticket",
    "Workspace",
    "open_run_log",
]
