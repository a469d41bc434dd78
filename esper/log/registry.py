"""The registry in use: opening it, and telling it of a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from esper.log.entries import Signer
from esper.log.errors import ConflictError, LogError, StoreUnavailableError
from esper.log.keyring import ROOT
from esper.log.seen import SeenSegments
from esper.log.shared_log import SharedLog
from esper.log.sources import source_for
from esper.log.store import RemoteStore, SharedStore, Store
from esper.log.workspace import Workspace
from esper_events.certificate import Role, certify
from esper_events.checkpoint import SignedCheckpoint
from esper_events.codec import decode_event
from esper_events.errors import EsperEventsError, KeyFileError
from esper_events.events import RunStarted
from esper_events.keys import PublicKey
from esper_events.reader import read_checkpoint
from esper_events.registry import (
    REGISTRY,
    HeadRecorded,
    RegistryEvent,
    RunRegistered,
    WriterAdmitted,
    WriterRevoked,
)
from esper_events.registry_rules import RegisteredRun
from esper_events.revocation import Revocation
from esper_events.segment import open_segment, segment_hash

_logger = logging.getLogger("esper.log")

_HEAD_SECONDS = 60.0
_HEAD_SHARE = 0.05
"""A head is recorded again after this share of the time that the run has been watched, so that a
run of days does not fill the registry."""
_RETRY_SECONDS = 5.0
_LONGEST_RETRY_SECONDS = 300.0
_UPDATE_SECONDS = 2.0


def open_registry(workspace: Workspace, nats: str | None = None) -> SharedLog:
    """The registry of the workspace's own server, or of the user's at the URL ``nats``.

    Raises ``LogError`` for a URL that is none, where there is no nats-server to start, or when what
    the workspace has seen of it cannot be read.
    """
    source = source_for(REGISTRY, workspace, nats)
    try:
        return SharedLog(source, lambda: signer_of(workspace), seen_in(workspace, source.name))
    except BaseException:
        source.close()
        raise


def signer_of(workspace: Workspace) -> Signer:
    """Who writes for ``workspace``; raises ``LogError`` when its key cannot be used."""
    key = workspace.key()
    certificate = workspace.credentials().certificate or None
    return Signer(key, certificate, partial(workspace.vouched_by, log=REGISTRY))


def admit_writer(registry: SharedLog, workspace: Workspace, key: PublicKey) -> None:
    """Let the owner of ``key`` write in ``registry``; nothing is written where that may already.

    Raises ``LogError`` where ``workspace`` does not have the key that admits writers.
    """
    registry.refresh()
    names = (ROOT, *workspace.keys.line())
    try:
        held = {workspace.keys.public(name): name for name in names if workspace.keys.has(name)}
        if registry.root is None:
            raise LogError(f"{registry.name}: there is no registry yet, its first run begins it")
        if registry.root not in held:
            raise LogError(
                f"{registry.name}: {registry.root.fingerprint} admits writers to the registry, and "
                f"that key is not in {workspace.keys.path}"
            )
        root = workspace.keys.load(held[registry.root])
    except KeyFileError as error:
        raise LogError(f"a key of the workspace cannot be used: {error}") from error
    admission = WriterAdmitted(
        time=time.time(), certificate=certify(root, key, Role.TRAINER, REGISTRY)
    )
    registry.update(lambda _: [] if registry.admits(key) else [admission])


def revoke_writer(registry: SharedLog, revocation: Revocation) -> None:
    """Have the key that the root took back write in ``registry`` no more; nothing is written where
    that is on record.

    Raises ``LogError`` where it is not the registry's root that took it back.
    """
    event = WriterRevoked(time=time.time(), revocation=revocation)
    registry.update(
        lambda records: (
            [] if any(_takes_back(r.event, revocation.key) for r in records) else [event]
        )
    )


def _takes_back(event: RegistryEvent, key: bytes) -> bool:
    return isinstance(event, WriterRevoked) and event.revocation.key == key


def seen_in(workspace: Workspace, server: str) -> SeenSegments:
    """What ``workspace`` has seen of the registry of the server with this name."""
    return SeenSegments(workspace.registry_file(server))


class Registrar:
    """Registers one run and records how far it has come; at work on the thread of its replica.

    It never fails the run: what cannot be told now is told later, by the next `level` that finds
    the time come, or by a repair. ``failure`` is why the last attempt came to nothing, None after
    one that did not.
    """

    def __init__(
        self,
        server: str,
        run_dir: Path,
        journal: Store,
        signer: Callable[[], Signer],
        seen: SeenSegments,
    ) -> None:
        self.failure: LogError | None = None
        self._run_dir = run_dir
        self._journal = journal
        self._source = _Beside(server)
        self._open = partial(SharedLog, self._source, signer, seen)
        self._registry: SharedLog | None = None
        self._begun = self._due = time.monotonic()
        self._retry = _RETRY_SECONDS
        self._warned = False

    def level(self, store: RemoteStore, last: bool) -> None:
        """The copy in ``store`` has all of the journal that there was; ``last`` where nothing
        comes after that.

        A server that has just left the registry unanswered is not asked again so soon, not even at
        the end: the run's segments would wait for it.
        """
        silent = isinstance(self.failure, StoreUnavailableError)
        if time.monotonic() < self._due and (silent or not last):
            return
        self._source.store = store
        try:
            self._tell(store.count)
        except LogError as error:
            self.failure, wait = error, self._retry
            self._retry = min(2 * self._retry, _LONGEST_RETRY_SECONDS)
            self._warn(error)
        else:
            self.failure, self._retry = None, _RETRY_SECONDS
            wait = max(_HEAD_SECONDS, _HEAD_SHARE * (time.monotonic() - self._begun))
        self._due = time.monotonic() + wait

    def _warn(self, error: LogError) -> None:
        """Once, and not of a server that is away: the replica tells of that."""
        if not self._warned and not isinstance(error, StoreUnavailableError):
            self._warned = True
            _logger.warning("the run is not on record in the registry: %s", error)

    def _tell(self, held: int) -> None:
        first, newest = next(self._journal.read(0)), next(self._journal.read(held - 1))
        registry = self._registry = self._registry or self._open()
        _update(registry, _news(self._run_dir, first, newest))


def register(
    store: RemoteStore, server: str, run_dir: Path, ends: tuple[bytes, bytes], workspace: Workspace
) -> None:
    """Tell the registry beside ``store``, the copy on ``server``, of the run in ``run_dir``; the
    copy has the segments from the first to the last of ``ends``.

    Raises ``LogError``.
    """
    source, seen = _Beside(server), seen_in(workspace, server)
    source.store = store
    with SharedLog(source, partial(signer_of, workspace), seen) as registry:
        _update(registry, _news(run_dir, *ends))


def _update(registry: SharedLog, news: _News) -> None:
    registry.update(lambda _: news.beyond(registry.runs.get(news.log)), _UPDATE_SECONDS)


class _Beside:
    """The registry's store on the connection that a run has to the server."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.store: RemoteStore | None = None

    def connect(self, create: bool) -> SharedStore:
        if self.store is None:
            raise StoreUnavailableError(f"{self.name}: no connection")
        return self.store.beside(REGISTRY, create)

    def close(self) -> None:
        """The connection is the run's."""


@dataclass(frozen=True)
class _News:
    """What there is to say of a run; ``head`` is its checkpoint, if the server has all of that."""

    log: str
    trainer_key: bytes
    genesis: str
    head: SignedCheckpoint | None

    def beyond(self, known: RegisteredRun | None) -> list[RegistryEvent]:
        """What the registry, which has ``known`` of the run, does not say yet."""
        now, news = time.time(), list[RegistryEvent]()
        if known is None:
            news.append(
                RunRegistered(
                    time=now, log=self.log, trainer_key=self.trainer_key, genesis=self.genesis
                )
            )
        elif known.genesis != self.genesis:
            raise ConflictError(
                f"another run is registered as {self.log}: its genesis is {known.genesis[:16]}, "
                f"that of this one {self.genesis[:16]}"
            )
        recorded = 0 if known is None else known.events
        if self.head is not None and self.head.checkpoint.size > recorded:
            news.append(HeadRecorded(time=now, log=self.log, note=self.head.note()))
        return news


def _news(run_dir: Path, first: bytes, newest: bytes) -> _News:
    """Of the run in ``run_dir``, of which the server has the segments from ``first`` to
    ``newest``."""
    try:
        genesis, last = open_segment(first), open_segment(newest)
        started = decode_event(genesis.events[0])
        head = read_checkpoint(run_dir)
    except (EsperEventsError, OSError) as error:
        raise LogError(f"{run_dir}: {error}") from error
    if not isinstance(started, RunStarted):
        raise LogError(f"{run_dir}: the journal does not begin with the start of a run")
    if head is not None and head.checkpoint.size > last.first_index + len(last.events):
        head = None
    return _News(genesis.log, started.trainer_key, segment_hash(first).hex(), head)
