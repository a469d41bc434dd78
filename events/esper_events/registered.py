"""A run held to what the registry says of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from esper_events.chain import ChainVerifier
from esper_events.errors import ChainError
from esper_events.framing import LENGTH, read_frames
from esper_events.newer import AuditVerifier
from esper_events.reader import LogReader
from esper_events.registry_chain import RegistryVerifier
from esper_events.registry_rules import RegisteredRun


def read_registry(path: Path) -> Mapping[str, RegisteredRun]:
    """The runs of the registry in the file ``path``, by log id: a copy of what a workspace has seen
    of one (``registry/SERVER.segments``). Every signature is checked.

    Raises:
        ChainError: it is no whole registry.
        OSError: it cannot be read.
    """
    chain = RegistryVerifier()
    with path.open("rb") as file:
        for at, segment in read_frames(file):
            chain.accept(segment, at + LENGTH.size)
    return chain.admission.rules.runs


def log_of(path: Path) -> str:
    """The id that the log of the run at ``path`` begins with, "" where it cannot be read."""
    reader = LogReader(path, verifier=AuditVerifier)
    try:
        next(reader.records())
    except (ChainError, OSError, ValueError, StopIteration):
        return ""
    return reader.verifier.log


def watch_heads(run: RegisteredRun, verifier: ChainVerifier) -> None:
    """Have ``verifier`` keep what `check_registered` needs; to be called before it reads."""
    for head in run.heads:
        verifier.watch(head.checkpoint.size)


def check_registered(run: RegisteredRun | None, verifier: ChainVerifier) -> None:
    """Hold the whole log that ``verifier`` has accepted to each of its recorded heads.

    Raises:
        ChainError: the registry names no such run (None), it is another run than the one that is
            named so, it was cut or rolled back, or its history is another one.
    """
    if run is None:
        raise ChainError(f"whole, but the registry names no run {verifier.log}")
    if verifier.first.hex() != run.genesis:
        raise ChainError(
            f"another run than the registered one: its first segment is {verifier.first.hex()}, "
            f"the registry has {run.genesis} for {run.log}"
        )
    for head in (signed.checkpoint for signed in run.heads):
        if head.size > verifier.events:
            raise ChainError(
                f"the log ends with {verifier.events} events, but the registry has seen "
                f"{run.events}: it was cut or rolled back"
            )
        if head.root != verifier.watched_roots.get(head.size):
            raise ChainError(
                f"the first {head.size} events are not those that the registry has seen: the "
                "history was rewritten or forked"
            )
