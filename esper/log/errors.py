"""Everything that can go wrong with a log, under one base class.

Messages say what was found, what was wanted and what to do; they never hold credentials.
"""

from __future__ import annotations

import errno

from esper_events.events import RunEnded


class LogError(Exception):
    """Base of every error that ``esper.log`` raises."""


class ConflictError(LogError):
    """A second writer, or a store that holds something else than this writer put there."""


class FencedError(ConflictError):
    """Another process has the run: behind the first ``fork`` segments, with event ``index``, begins
    lease ``epoch`` of ``holder``, "" where that is not known."""

    def __init__(self, message: str, epoch: int, holder: str, index: int, fork: int) -> None:
        super().__init__(message)
        self.fork = fork
        self.epoch = epoch
        self.holder = holder
        self.index = index


class JournalError(LogError):
    """The local journal cannot be written or read."""


class NoRoomError(JournalError):
    """The disk is full, or a quota or a limit on the size of files is reached."""


_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def unwritten(what: str, size: int | None, error: OSError) -> JournalError:
    """Why ``what``, of ``size`` bytes where that is known, could not be written."""
    if error.errno not in _NO_ROOM:
        return JournalError(f"cannot write {what}: {error}")
    wanted = "" if size is None else f"{size:,} bytes: "
    return NoRoomError(f"there is no room for {what} ({wanted}{error.strerror})")


class RunEndedError(LogError):
    """The run is over: there is nothing to resume. ``ended`` is its last event."""

    def __init__(self, message: str, ended: RunEnded) -> None:
        super().__init__(message)
        self.ended = ended


class StoreError(LogError):
    """The server answered, and the answer was a refusal or a damaged log."""


class MissingStreamError(StoreError):
    """The server has no stream for the log."""


class DamagedStoreError(StoreError):
    """The server has lost segments of a log, or gives out something else in their place."""


class BrokenLogError(StoreError):
    """A shared log on a server that is not what its writers signed."""


class RolledBackError(BrokenLogError):
    """The server holds less of a shared log than was there before, or something else."""


class RefusedError(StoreError):
    """JetStream's own refusal: ``code`` like HTTP's (404: no such thing), ``err_code`` NATS's."""

    def __init__(self, message: str, code: int, err_code: int) -> None:
        super().__init__(message)
        self.code = code
        self.err_code = err_code


class StoreUnavailableError(LogError):
    """The server did not answer in time; what was asked of it may or may not have happened."""


class OutcomeUnknownError(StoreUnavailableError):
    """What was published to a shared log may come to stand in it: the next update finds out."""


class ServerError(LogError):
    """The embedded server could not be found, started or proved durable."""


class ServerStartError(ServerError):
    """The embedded server was started and ended, or told no address: its log says more."""


class LogClosedError(LogError):
    """An event was appended after the log was closed or its run had ended."""
