"""The auditor's question, answered for a run directory or an exported file: is it whole?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from esper_events.errors import ChainError
from esper_events.keys import PublicKey
from esper_events.reader import LogReader


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify_path` found; where ``ok`` is False the counts are those of the good beginning.

    ``head`` is the SHA-256 of the last good segment in hex, ``key`` the fingerprint of the key
    that the log was checked against ("" where there was none to be had), ``checkpoint`` the
    number of events that the run's own signed checkpoint commits to, if there is one. The first
    of ``messages`` is the verdict; the others say what could not be excluded.
    """

    ok: bool
    events: int
    segments: int
    head: str
    ended: bool
    key: str
    log: str
    checkpoint: int | None
    messages: tuple[str, ...]

    @property
    def message(self) -> str:
        """The verdict in one line."""
        return self.messages[0]


def verify_path(path: Path, trusted: PublicKey | None = None) -> Report:
    """Check every byte of the run at ``path``, a run directory or an exported file.

    Args:
        path: what to check.
        trusted: the trainer's public key where the caller knows it; else the key that the log
            itself names is used, and the report says so.

    Never raises for what it finds in ``path``: a damaged or missing log is a report that is not ok.
    """
    reader = LogReader(path, trusted)
    try:
        for _ in reader.records():
            pass
    except ChainError as error:
        return _report(reader, False, (str(error),))
    except (OSError, ValueError) as error:
        return _report(reader, False, (f"cannot be read: {error}",))
    return _report(reader, True, _findings(reader, trusted is not None))


def _report(reader: LogReader, ok: bool, messages: tuple[str, ...]) -> Report:
    verifier, checkpoint = reader.verifier, reader.checkpoint
    return Report(
        ok=ok,
        events=verifier.events,
        segments=verifier.segments,
        head=verifier.head.hex(),
        ended=verifier.ended,
        key="" if verifier.key is None else verifier.key.fingerprint,
        log=verifier.log,
        checkpoint=None if checkpoint is None else checkpoint.size,
        messages=messages,
    )


def _findings(reader: LogReader, pinned: bool) -> tuple[str, ...]:
    verifier, checkpoint = reader.verifier, reader.checkpoint
    fingerprint = "" if verifier.key is None else verifier.key.fingerprint
    found = [
        f"whole: {verifier.events} events in {verifier.segments} segments of log {verifier.log}, "
        f"signed by {fingerprint}"
    ]
    if not verifier.ended:
        last = "the start" if checkpoint is None else f"event {checkpoint.size - 1}"
        found.append(
            "the run has not ended in this log; a cut at a segment boundary "
            f"after {last} is not excluded"
        )
    if not pinned:
        found.append(
            "the key was taken from the log itself; a log made up whole under another key is "
            "not excluded (compare the fingerprint, or pin the key)"
        )
    found.append(
        "a history rolled back or rewritten by the owner of the key is not excluded "
        "(compare with a checkpoint that was kept elsewhere)"
    )
    return tuple(found)
