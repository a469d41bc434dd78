"""Giving a server back what its registry has lost, from what a workspace has seen of it."""

from __future__ import annotations

from dataclasses import dataclass

from esper.log.errors import DamagedStoreError, LogError, RolledBackError
from esper.log.registry import seen_in
from esper.log.seen import SeenSegments
from esper.log.sources import EmbeddedSource, UserSource, source_for
from esper.log.stream import stream_name
from esper.log.workspace import Workspace
from esper_events.errors import ChainError
from esper_events.registry import REGISTRY
from esper_events.registry_chain import RegistryVerifier


@dataclass(frozen=True)
class RegistryRepair:
    """What was done: ``sent`` of the ``seen`` segments that the workspace knows went to ``server``.

    ``replaced`` tells what was wrong with the stream where it had to be made anew, else it is "".
    """

    server: str
    seen: int
    sent: int
    replaced: str = ""

    def __str__(self) -> str:
        done = f"{self.sent} segments sent" if self.sent else "nothing was missing"
        text = f"{done}; {self.server} holds all {self.seen} that this workspace has seen"
        return f"{self.replaced}; {text}" if self.replaced else text


def repair_registry(workspace: Workspace, nats: str | None = None) -> RegistryRepair:
    """Send the segments of the registry that ``workspace`` has seen and the server has lost.

    They are verified first, and what the server holds is compared with them. A damaged stream of
    the embedded server is moved aside and begun anew. Raises ``RolledBackError`` where the server
    holds something else in their place, ``DamagedStoreError`` for a damaged stream of a user's
    server, ``LogError`` for a server that does not answer, or when what was seen is not whole.
    """
    source = source_for(REGISTRY, workspace, nats)
    try:
        seen = seen_in(workspace, source.name)
        segments = _verified(seen)
        try:
            return RegistryRepair(source.name, len(segments), _send(source, segments))
        except DamagedStoreError as error:
            replaced = _replace(source, error)
            return RegistryRepair(source.name, len(segments), _send(source, segments), replaced)
    finally:
        source.close()


def _verified(seen: SeenSegments) -> list[bytes]:
    segments, chain = seen.load(), RegistryVerifier()
    try:
        for segment in segments:
            chain.accept(segment)
    except ChainError as error:
        raise LogError(f"{seen.path}: {error}; {seen.advice}") from error
    if not segments:
        raise LogError(f"{seen.path}: this workspace has seen nothing of the registry")
    return segments


def _send(source: EmbeddedSource | UserSource, segments: list[bytes]) -> int:
    store = source.connect()
    try:
        held = min(store.count, len(segments))
        for position, (mine, theirs) in enumerate(zip(segments, store.read(), strict=False)):
            if mine != theirs:
                raise RolledBackError(
                    f"{source.name}: segment {position} of the registry is not the one that this "
                    "workspace has seen: it was begun anew by others, and nothing was sent"
                )
        for position in range(held, len(segments)):
            store.append(position, segments[position])
        return len(segments) - held
    finally:
        store.close()


def _replace(source: EmbeddedSource | UserSource, error: DamagedStoreError) -> str:
    if isinstance(source, UserSource):
        raise DamagedStoreError(
            f"{error}; delete the stream {stream_name(REGISTRY)} as the server's administrator, "
            "then repair again"
        ) from error
    kept = source.set_aside()
    return f"{error}; its files {'were gone' if kept is None else f'lie in {kept.now} now'}"
