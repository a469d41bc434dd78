"""What a daemon tells the process that trains a job, and what that tells it: in JSON.

The order goes through the child's standard input (it can hold a server's password); progress and
report are files in the job's directory, which appear whole.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

PROGRESS = "progress.json"
REPORT = "report.json"
STDOUT = "stdout"
STDERR = "stderr"
RUN = "run"
"""The directory of the job's run in that of the job."""

T = TypeVar("T", bound=msgspec.Struct)


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Train ``config`` (its text) under lease ``epoch`` of ``holder``, in the log ``log``.

    ``why`` tells how the lease came about. ``directory`` is where relative paths of the config
    begin, ``memory`` a limit in bytes (0: none), ``nats`` a server's URL (None: that of
    ``workspace``).
    """

    config: str
    directory: str
    seed: int
    ack: Literal["journal", "jetstream"]
    epoch: int
    holder: str
    log: str
    why: str
    memory: int
    workspace: str
    nats: str | None
    accept_unproved: bool


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a training has come: ``step`` of ``steps``, its loss (None where that is no number),
    the held-out accuracy in percent, and the circuit breakers that are not closed, with their
    state."""

    step: int
    steps: int
    loss: float | None
    accuracy: float | None = None
    breakers: dict[str, str] = {}


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How a training process ended, for ``reason``.

    ``ended``: the run is over, ``outcome`` tells how. ``left``: it stopped at a safe point, as it
    was told or because it could not go on here. ``fenced``: somebody else has the run.
    ``refused``: trying again would come to the same. ``away``: the server did not answer, which is
    not the job's fault. ``failed``: anything else.
    """

    end: Literal["ended", "left", "fenced", "refused", "away", "failed"]
    reason: str = ""
    outcome: Literal["completed", "interrupted", "failed"] = "completed"


def put(path: Path, told: msgspec.Struct) -> None:
    """Write ``told`` so that a reader finds all of it or none; it need not outlive the machine."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(msgspec.json.encode(told))
    draft.replace(path)


def got(path: Path, kind: type[T]) -> T | None:
    """What is told in ``path``; None where nothing is, or nothing of this kind."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None
