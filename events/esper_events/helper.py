"""A process that examines segments, as who asks it sees it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from esper_events.examine import LENGTH, Examined, Question, examine
from esper_events.keys import PublicKey

_PIPE_BYTES = 1 << 20
_PROGRAM = (
    "import runpy, sys; sys.path[:] = sys.argv[1:]; "
    "runpy.run_module('esper_events.examine', run_name='__main__')"
)


@dataclass(eq=False)
class Batch:
    """Neighbours in a log: the byte at which each begins, itself, and the key that it claims, where
    the log has that. ``found`` is None while that is open."""

    places: list[int] = field(default_factory=list)
    segments: list[bytes] = field(default_factory=list)
    keys: list[PublicKey | None] = field(default_factory=list)
    found: Sequence[Examined | None] | None = None
    size: int = 0

    def add(self, at: int, segment: bytes, key: PublicKey | None) -> None:
        """Take one more."""
        self.places.append(at)
        self.segments.append(segment)
        self.keys.append(key)
        self.size += len(segment)

    @property
    def question(self) -> Question | None:
        """None where a segment is of a key that the log has not told of yet."""
        asked = [(key.raw, data) for key, data in zip(self.keys, self.segments, strict=True) if key]
        return asked if len(asked) == len(self.segments) else None

    def examine(self) -> None:
        """Find what there is here and now."""
        self.found = [
            None if key is None else examine(key, data)
            for key, data in zip(self.keys, self.segments, strict=True)
        ]

    def leave(self) -> None:
        """Nothing will be found before the segments' turn."""
        self.found = [None] * len(self.segments)


class Helper:
    """Finds out about batches in the order in which it is given them.

    One that dies, or answers what is no answer, is ``lost``: what it was given is left for later.

    Raises ``OSError`` when no process can be started.
    """

    def __init__(self) -> None:
        self.ready = False
        """Whether it has started."""
        self.lost = False
        self.given: deque[Batch] = deque()
        """What is open still."""
        self._unsent = bytearray()
        self._received = bytearray()
        self._answers = msgspec.msgpack.Decoder(list[Examined])
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            pipesize=_PIPE_BYTES,
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise OSError("a process was started without its pipes")
        self._in, self._out = self._process.stdin, self._process.stdout
        os.set_blocking(self._in.fileno(), False)
        os.set_blocking(self._out.fileno(), False)

    def give(self, batch: Batch) -> None:
        """Ask for what can be found of ``batch``; never waits."""
        question = None if self.lost else batch.question
        if question is None:
            batch.leave()
            return
        message = msgspec.msgpack.encode(question)
        self._unsent += LENGTH.pack(len(message)) + message
        self.given.append(batch)
        self.exchange()

    def exchange(self) -> None:
        """Send what the pipe takes, and take what has come; never waits."""
        try:
            with contextlib.suppress(BlockingIOError):
                while self._unsent:
                    del self._unsent[: os.write(self._in.fileno(), self._unsent)]
            with contextlib.suppress(BlockingIOError):
                while data := os.read(self._out.fileno(), _PIPE_BYTES):
                    self._received += data
                self._lose()
            self._read_answers()
        except (OSError, ValueError, msgspec.MsgspecError):
            self._lose()

    def close(self) -> None:
        """End the process."""
        self._in.close()
        self._out.close()
        self._process.kill()
        self._process.wait()

    def _read_answers(self) -> None:
        while len(self._received) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._received)[0]
            if len(self._received) < end:
                return
            body = bytes(self._received[LENGTH.size : end])
            del self._received[:end]
            if not body:
                self.ready = True
                continue
            found, batch = self._answers.decode(body), self.given.popleft()
            batch.found = found
            if len(found) != len(batch.segments):
                batch.leave()
                self._lose()

    def _lose(self) -> None:
        self.lost = True
        while self.given:
            self.given.popleft().leave()
        self._unsent.clear()
