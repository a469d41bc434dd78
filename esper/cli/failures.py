"""How a command ends: exit codes (docs/cli.md), and errors as one line instead of a traceback."""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

import click

from esper_events.terminal import printable, silence

GOOD = 0
VERIFICATION_FAILED = 1
BAD_USAGE = 2
FAILED = 3
INTERRUPTED = 130

_ENDING = (signal.SIGTERM, signal.SIGHUP)


class UserError(click.ClickException):
    """Something the user can mend; shown as one line, exit code 2."""

    exit_code = BAD_USAGE

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line on standard error."""
        say(self.message)


class RunFailedError(UserError):
    """Something outside the command's reach failed (a disk, a server); exit code 3."""

    exit_code = FAILED


class NotWholeError(UserError):
    """A log that is damaged, is not there or cannot be read; exit code 1, whichever it is: what a
    script learns must not depend on how much was taken away."""

    exit_code = VERIFICATION_FAILED

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(f"{path}: FAILED: {reason}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """A block that reads the log at ``path`` and does nothing else; raises ``NotWholeError``."""
    from esper_events.errors import ChainError, cause

    try:
        yield
    except ChainError as error:
        raise NotWholeError(path, error) from error
    except OSError as error:
        raise NotWholeError(path, f"cannot be read: {cause(error)}") from error


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, which end a run as well as Ctrl-C does: with its log closed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def say(message: str) -> None:
    """One line on standard error."""
    click.echo(f"esper: {printable(message)}", err=True)


def run(command: click.Command, arguments: list[str] | None = None) -> int:
    """Run a command to its exit code; nothing escapes but what the interpreter itself raises."""
    # One that is ignored, as nohup has it, stays ignored.
    caught = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in caught:
        signal.signal(number, _terminate)
    try:
        return _run(command, arguments)
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)


def _run(command: click.Command, arguments: list[str] | None) -> int:
    output, code = sys.stdout, GOOD
    try:
        result = command.main(args=arguments, prog_name="esper", standalone_mode=False)
        code = result if isinstance(result, int) else GOOD
        if sys.stdout is not None:  # closed by the shell: >&-
            sys.stdout.flush()
        return code
    except click.exceptions.Abort as abort:
        return _interrupted(abort)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        verb = error.ctx.command_path if error.ctx is not None else "esper"
        say(f"{error.format_message().rstrip('.')}; see: {verb} --help")
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        silence(sys.stdout)
        return code
    except SystemExit as done:
        if sys.stdout is not output:  # click's answer to a closed pipe is to replace it
            silence(sys.stdout)
            return GOOD
        return done.code if isinstance(done.code, int) else FAILED
    except Exception as error:  # noqa: BLE001 - the last resort
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            if error.filename is None:
                silence(sys.stdout)
            say(f"there is no room to write: {error.filename or 'the output'}")
            return FAILED
        return _unexpected(error)


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise Terminated(number)


def _interrupted(abort: click.exceptions.Abort) -> int:
    if isinstance(abort.__cause__, Terminated):
        say("terminated")
        return 128 + abort.__cause__.number
    say("interrupted")
    return INTERRUPTED


def _unexpected(error: Exception) -> int:
    if os.environ.get("ESPER_DEBUG") == "1":
        traceback.print_exc()
        return FAILED
    report = _report(error)
    first = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {first[0]}" if first else type(error).__name__
    where = f"full report in {report}" if report else "ESPER_DEBUG=1 shows the full report"
    say(f"unexpected error, {what} ({where})")
    return FAILED


def _report(error: Exception) -> str | None:
    """The traceback in a file only its user can read; None where none can be written."""
    text = "".join(traceback.format_exception(error))
    try:
        handle, path = tempfile.mkstemp(prefix="esper-report-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"command: {' '.join(sys.argv)}\npython: {sys.version}\n\n{text}")
    except OSError:
        return None
    return path
