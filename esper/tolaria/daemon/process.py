"""The process that trains a job, as its daemon sees it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from esper.log.errors import LogError
from esper.tolaria.daemon.orders import (
    REPORT,
    RUN,
    STDERR,
    STDOUT,
    Order,
    Report,
    got,
)

_LAST_WORDS = 500


class TrainerProcess:
    """Started at once, in a process group of its own, so that Ctrl-C at a terminal is for the
    daemon alone; the kernel ends it with the daemon.

    To be made in the daemon's main thread: it is with the thread that the kernel ends it. Raises
    ``LogError`` when it cannot be started.
    """

    def __init__(self, directory: Path, order: Order) -> None:
        self._directory = directory
        try:
            # Where the run of a job lies, whose truth is a journal, there it goes on.
            (directory / RUN).mkdir(mode=0o700, parents=True, exist_ok=True)
            (directory / REPORT).unlink(missing_ok=True)
            self._process = self._start()
        except OSError as error:
            raise LogError(f"{directory}: cannot start a training process: {error}") from error
        stdin = self._process.stdin
        if stdin is not None:
            with suppress(BrokenPipeError), stdin:  # One that has died already is found out later.
                stdin.write(msgspec.json.encode(order))

    def _start(self) -> subprocess.Popen[bytes]:
        child = [sys.executable, "-P", "-m", "esper.tolaria.daemon.child"]
        with (
            (self._directory / STDOUT).open("ab") as stdout,
            (self._directory / STDERR).open("ab") as stderr,
        ):
            self._spoken = stderr.tell()
            return subprocess.Popen(
                [*child, str(self._directory), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def leave(self) -> None:
        """Ask it to stop at the next safe point, with its run to be gone on with."""
        self._signal(signal.SIGTERM)

    def end(self) -> None:
        """Ask it to end its run at the next safe point."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """End it, and what it has started, at once."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        if self.running:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def report(self) -> Report:
        """How it ended; to be asked when it has."""
        told = got(self._directory / REPORT, Report)
        return told or Report(end="failed", reason=self._death())

    def _death(self) -> str:
        code = self._process.returncode
        how = (
            f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        )
        last = self._last_words()
        return f"the training process {how}{f', its last words: {last}' if last else ''}"

    def _last_words(self) -> str:
        """The end of what it wrote on standard error."""
        with (self._directory / STDERR).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._spoken, size - _LAST_WORDS))
            lines = file.read().decode("utf-8", "backslashreplace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
