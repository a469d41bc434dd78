"""Where a run can be struck: at the calls by which it changes, or learns of, what is outside of it.

In a process that is to be struck every such call is counted under what it does and to which file,
such as ``fsync run/journal/segments``, and at the chosen one somebody is killed: the process
itself, the nats-server that it speaks to, the server's supervisor, or process and server. What it
was told is durable is written to a diary before it can act on that: a witness of its own, which
lives on in the kernel when the process dies.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from esper.log import event_log
from esper.log.settling import Settling
from esper_events.codec import encode_event
from esper_events.events import Event, Record

Victim = Literal["trainer", "server", "supervisor", "both", "pause"]
"""Who is killed; ``both`` are server and trainer. A pause is a trainer that is stopped, not killed:
others take it for dead until it goes on."""

_CALLS = (
    *("write", "pwrite", "fsync", "ftruncate", "chmod"),
    *("replace", "rename", "link", "unlink", "mkdir", "rmdir"),
)
_VARIABLE = re.compile(r"[0-9a-f]{16,}|\d+")
_write = os.write  # The diary is no point: it must work while every other call is counted.


class Point(msgspec.Struct, frozen=True):
    """The ``number``-th call, from 1 on, of those that are counted under ``label``."""

    label: str
    number: int


class Strike(msgspec.Struct, frozen=True):
    """Whom to kill, and when: at a point, or so many seconds after the process began."""

    victim: Victim
    moment: Point | float

    def __str__(self) -> str:
        moment = self.moment
        if isinstance(moment, Point):
            return f"{self.victim} at {moment.label}, time {moment.number}"
        return f"{self.victim} after {moment:.3f} s"

    @property
    def label(self) -> str:
        """The kind of its moment."""
        return self.moment.label if isinstance(self.moment, Point) else "any time"


@dataclass
class Told:
    """What a diary tells: digests of acknowledged events by their index, those that changed
    afterwards, the steps at which processes went on, and strikes that were carried out."""

    acknowledged: dict[int, str] = field(default_factory=dict)
    changed: list[int] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)
    strikes: list[Strike] = field(default_factory=list)


class Diary:
    """Lines at the end of a file, each written by one call, so that it is there when it counts."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o644)

    def acknowledged(self, records: Iterable[Record]) -> None:
        """These are about to count as durable."""
        lines = [f"acknowledged {record.index} {digest(record.event)}\n" for record in records]
        _write(self._descriptor, "".join(lines).encode())

    def resumed(self, step: int) -> None:
        """Training goes on after ``step``."""
        _write(self._descriptor, f"resumed {step}\n".encode())

    def struck(self, strike: Strike) -> None:
        """This is done now."""
        _write(self._descriptor, b"struck " + msgspec.json.encode(strike) + b"\n")


def read_diary(path: Path) -> Told:
    """What the diary at ``path`` tells, of all processes that wrote there."""
    told = Told()
    for line in path.read_text().splitlines() if path.exists() else ():
        kind, _, rest = line.partition(" ")
        if kind == "acknowledged":
            index, _, hashed = rest.partition(" ")
            if told.acknowledged.setdefault(int(index), hashed) != hashed:
                told.changed.append(int(index))
        elif kind == "resumed":
            told.resumed.append(int(rest))
        else:
            told.strikes.append(msgspec.json.decode(rest, type=Strike))
    return told


def digest(event: Event) -> str:
    """SHA-256 in hex of the event's bytes in a log."""
    return hashlib.sha256(encode_event(event)).hexdigest()


class Points:
    """Counts the points that this process comes to below ``base``, and strikes at some."""

    def __init__(self, base: Path, server: Path, diary: Diary, strikes: Sequence[Strike]) -> None:
        self.census: Counter[str] = Counter()
        self._base = f"{base.resolve()}/"
        self._server = server
        self._diary = diary
        self._armed = {s.moment: s for s in strikes if isinstance(s.moment, Point)}
        self._due: list[Strike] = []
        self._lock = threading.Lock()

    def reach(self, label: str, tear: Callable[[], object] | None = None) -> None:
        """Count the point; ``tear`` does a part of what it stands for, before a strike at it.

        A strike at a server that is not there yet waits for the first point at which it is.
        """
        with self._lock:
            self.census[label] += 1
            strike = self._armed.pop(Point(label, self.census[label]), None)
            if strike is not None:
                self._due.append(strike)
                if tear is not None:
                    tear()
            self._due = [s for s in self._due if not carry_out(s, self._server, self._diary)]

    def place(self, target: object) -> str | None:
        """The file that a call's argument names, as labels have it; None outside of ``base``."""
        try:
            named = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target
        except OSError:
            return None
        path = os.fsdecode(named) if isinstance(named, str | bytes | os.PathLike) else ""
        if path.startswith("/"):
            if not path.startswith(self._base):
                return None
            path = path.removeprefix(self._base)
        return _VARIABLE.sub("*", path)


def carry_out(strike: Strike, server: Path, diary: Diary, trainer: int | None = None) -> bool:
    """Kill the victim; False when it is the server of the directory ``server`` and not there.

    ``trainer`` is the process of the trainer, this one by default.
    """
    if strike.victim in ("trainer", "pause"):
        diary.struck(strike)
    elif not _kill_server(strike, server, diary):
        return False
    process = os.getpid() if trainer is None else trainer
    if strike.victim in ("trainer", "both"):
        os.kill(process, signal.SIGKILL)
    elif strike.victim == "pause":
        os.kill(process, signal.SIGSTOP)
    return True


def _kill_server(strike: Strike, server: Path, diary: Diary) -> bool:
    which = "supervisor" if strike.victim == "supervisor" else "pid"
    try:
        process = int(json.loads((server / "endpoint.json").read_text())[which])
        ours = os.fsencode(server.parent.parent / "workspace-")  # Of whatever machine.
        if ours not in Path(f"/proc/{process}/cmdline").read_bytes():
            return False  # It is gone, and its number another's.
        os.kill(process, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return False
    diary.struck(strike)
    return True


def install(points: Points, diary: Diary) -> None:
    """Count the calls of this process from now on, and keep its diary; it cannot be undone."""
    for name in _CALLS:
        setattr(os, name, _counted(points, name, getattr(os, name)))
    for name in ("send", "sendmsg", "recv"):
        setattr(socket.socket, name, _counted_socket(points, name, getattr(socket.socket, name)))

    class Witnessed(Settling):
        def __init__(self, ack: Any, records: list[Record], settled: threading.Condition) -> None:
            super().__init__(ack, _Witness(records, points, diary), settled)

    setattr(event_log, "Settling", Witnessed)  # noqa: B010 - it is no export of that module


class _Witness(list[Record]):
    """Stands in the place of a log's acknowledged records, where these come to first of all."""

    def __init__(self, records: list[Record], points: Points, diary: Diary) -> None:
        super().__init__()
        self._records, self._points, self._diary = records, points, diary

    def extend(self, records: Iterable[Record]) -> None:
        told = list(records)
        self._points.reach("before an acknowledgement")
        self._diary.acknowledged(told)
        self._points.reach("after an acknowledgement")
        self._records.extend(told)


def _counted(points: Points, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def counted(target: Any, *arguments: Any, **more: Any) -> Any:
        place = points.place(target)
        if place is not None:
            points.reach(f"{name} {place}")
            if name == "pwrite":
                _reach_torn(points, f"torn {name} {place}", call, target, *arguments)
        return call(target, *arguments, **more)

    return counted


def _reach_torn(
    points: Points, label: str, write: Callable[..., object], target: Any, data: Any, offset: int
) -> None:
    """A strike in the middle of a write leaves a part of it, another one each time."""
    size = len(data) * (points.census[label] % 7 + 1) // 8
    points.reach(label, lambda: write(target, data[:size], offset))


def _counted_socket(points: Points, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def counted(self: socket.socket, *arguments: Any, **more: Any) -> Any:
        if self.family == socket.AF_INET:
            points.reach(f"{name} server")
        return call(self, *arguments, **more)

    return counted
