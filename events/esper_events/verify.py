"""The auditor's question, answered for a run directory or an exported file: is it whole?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from esper_events.anchor import Anchor
from esper_events.checkpoint import SignedCheckpoint
from esper_events.errors import ChainError, cause
from esper_events.newer import AuditVerifier
from esper_events.reader import LogReader
from esper_events.registered import check_registered, log_of, watch_heads
from esper_events.registry_rules import RegisteredRun
from esper_events.revocation import Revocation


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify_path` found; where ``ok`` is False the counts are those of the good beginning.

    ``head`` is the SHA-256 of the last good segment in hex, ``key`` the fingerprint of the key
    that the log was checked against ("" where there was none to be had), ``root`` that of the root
    key whose certificate for it the log holds ("" where it holds none), ``checkpoint`` the
    number of events that the run's own signed checkpoint commits to, if there is one, ``kept``
    that of the checkpoint which the caller kept and which the log bears out, and ``registered``
    that which the registry has seen of the run, None where it was not asked. The first of
    ``messages`` is the verdict; the others say what could not be excluded.
    """

    ok: bool
    events: int
    segments: int
    head: str
    ended: bool
    key: str
    root: str
    log: str
    checkpoint: int | None
    kept: int | None
    registered: int | None
    messages: tuple[str, ...]

    @property
    def message(self) -> str:
        """The verdict in one line."""
        return self.messages[0]

    @property
    def details(self) -> tuple[str, ...]:
        """What is worth telling a person below the verdict."""
        return (f"head: {self.head}",) if self.ok else ()


def verify_path(
    path: Path,
    trusted: Anchor | None = None,
    kept: SignedCheckpoint | None = None,
    registry: Mapping[str, RegisteredRun] | None = None,
    revoked: Sequence[Revocation] = (),
) -> Report:
    """Check every byte of the run at ``path``, a run directory or an exported file.

    Args:
        path: what to check.
        trusted: the trainer's public key or a root's that certified it, or the fingerprint of
            either, where the caller knows it; else the key that the log itself names is used, and
            the report says so.
        kept: a checkpoint of this log from a source that the caller trusts, such as a copy of
            ``DIR/checkpoint`` that was kept elsewhere: what came before it can then not have been
            cut, rolled back or rewritten, not even by the owner of the key.
        registry: what a registry says of runs, by log id: the run has to be one of them, and its
            log is held to what was seen of it in the same way.
        revoked: keys that the caller knows to have been taken back, each checked; those that the
            log itself tells of count in any case.

    Never raises for what it finds in ``path``: a damaged or missing log is a report that is not ok.
    """
    reader = LogReader(path, trusted, kept, revoked, AuditVerifier)
    registered = None if registry is None else registry.get(log_of(path))
    if registered is not None:
        watch_heads(registered, reader.verifier)
    try:
        for _ in reader.records():
            pass
        if registry is not None:
            check_registered(registered, reader.verifier)
    except ChainError as error:
        return _report(reader, None, (str(error),))
    except (OSError, ValueError) as error:
        return _report(reader, None, (f"cannot be read: {cause(error)}",))
    size = 0 if kept is None else kept.checkpoint.size
    seen = None if registered is None else registered.events
    findings = _findings(reader, trusted is not None, size, seen)
    return _report(reader, size, (*findings, *reader.verifier.findings), seen)


def _report(
    reader: LogReader, kept: int | None, messages: tuple[str, ...], registered: int | None = None
) -> Report:
    """The report of a whole log, which bears out ``kept`` events, or of a bad one (None)."""
    verifier, signed = reader.verifier, reader.signed
    return Report(
        ok=kept is not None,
        events=verifier.events,
        segments=verifier.segments,
        head=verifier.head.hex(),
        ended=verifier.ended,
        key="" if verifier.key is None else verifier.key.fingerprint,
        root="" if verifier.authority.root is None else verifier.authority.root.fingerprint,
        log=verifier.log,
        checkpoint=None if signed is None else signed.checkpoint.size,
        kept=kept or None,
        registered=registered,
        messages=messages,
    )


def _findings(
    reader: LogReader, pinned: bool, kept: int, registered: int | None
) -> tuple[str, ...]:
    verifier, signed = reader.verifier, reader.signed
    fingerprint = "" if verifier.key is None else verifier.key.fingerprint
    found = [
        f"whole: {verifier.events} events in {verifier.segments} segments of log {verifier.log}, "
        f"signed by {fingerprint}"
    ]
    keys = len({tenure.key for tenure in verifier.authority.tenures})
    if keys > 1:
        found[0] += f", the last of its {keys} keys"
    if verifier.authority.root is not None:
        found[0] += f", certified by the root {verifier.authority.root.fingerprint}"
    if kept:
        found[0] += f", the first {kept} as the kept checkpoint has them"
    if registered is not None:
        found[0] += f", registered, the first {registered} as the registry has seen them"
    kept = max(kept, registered or 0)
    if not verifier.ended:
        vouched = max(kept, 0 if signed is None else signed.checkpoint.size)
        last = f"event {vouched - 1}" if vouched else "the start"
        found.append(
            "the run has not ended in this log; a cut at a segment boundary "
            f"after {last} is not excluded"
        )
    if not (pinned or kept or registered is not None):
        found.append(
            "the key was taken from the log itself; a log made up whole under another key is "
            "not excluded (compare the fingerprint, or pin it)"
        )
    if kept < verifier.events or not verifier.ended:
        after = f" after event {kept - 1}" if kept else ""
        which = "a later checkpoint" if kept else "a checkpoint"
        found.append(
            f"a history rolled back or rewritten{after} by the owner of the key is not excluded "
            f"(compare with {which} that was kept elsewhere)"
        )
    return tuple(found)
