"""A run held to what the registry says of it."""

from __future__ import annotations

from esper_events.chain import ChainVerifier
from esper_events.errors import ChainError
from esper_events.registry_rules import RegisteredRun


def watch_heads(run: RegisteredRun, verifier: ChainVerifier) -> None:
    """Have ``verifier`` keep what `check_registered` needs; to be called before it reads."""
    for head in run.heads:
        verifier.watch(head.checkpoint.size)


def check_registered(run: RegisteredRun, verifier: ChainVerifier) -> None:
    """Hold the whole log that ``verifier`` has accepted to each of its recorded heads.

    Raises:
        ChainError: it is another log than the registered one, it was cut or rolled back, or its
            history is another one.
    """
    if verifier.log != run.log:
        raise ChainError(f"this is log {verifier.log}, the registry was asked for {run.log}")
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
