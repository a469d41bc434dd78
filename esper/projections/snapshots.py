"""Folded states kept beside a run: a cache, never an authority.

A snapshot saves the folding of the records before it and nothing else. The log is verified from
its start all the same: only that tells which head its chain has at the snapshot's place, and a
snapshot with another head is of another history. What is kept is one state per projection, in
``DIR/snapshots/<projection>``: a line that names the format, the SHA-256 of the rest, and the
rest, a `Snapshot` in MessagePack. The digest guards against damage, not against somebody who can
write in the run's directory: who does not trust that directory folds from the start.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path

import msgspec

from esper import __version__
from esper.projections.canonical import canonical_bytes
from esper.projections.projection import Projection, S
from esper_events.files import whole_file

SNAPSHOTS = Path("snapshots")
"""Where a run's snapshots lie in its directory."""
MAX_SNAPSHOT_BYTES = 256 << 20

_MAGIC = b"esper snapshot 1\n"
_DIGEST_BYTES = 32


class SnapshotError(Exception):
    """A snapshot that is of no use here; the message says why."""


class Snapshot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A state and its place: after ``seq`` records of ``log``, where the last segment that was
    read from had the SHA-256 ``head``. ``code`` is the `code_version` that folded it, ``state``
    its canonical bytes."""

    projection: str
    code: str
    log: str
    seq: int
    head: bytes
    state: bytes


def take(projection: Projection[S], state: S, log: str, head: bytes) -> Snapshot:
    """A snapshot of ``state``, which was folded from ``log`` up to a segment that hashes to
    ``head``."""
    data = canonical_bytes(state)
    return Snapshot(projection.name, code_version(), log, state.records, head, data)


def save(run_dir: Path, snapshot: Snapshot) -> None:
    """Put ``snapshot`` in the place of the one that the run has of its projection.

    Raises:
        OSError: it cannot be written.
    """
    body = msgspec.msgpack.encode(snapshot)
    directory = run_dir / SNAPSHOTS
    directory.mkdir(exist_ok=True)
    with whole_file(directory / snapshot.projection, replace=True) as file:
        file.write(_MAGIC + hashlib.sha256(body).digest() + body)


def load(run_dir: Path, projection: Projection[S]) -> Snapshot | None:
    """The run's snapshot of ``projection``, undamaged and of this code; None where there is none.

    Whether it fits the log is for the caller to see, by its ``log``, ``seq`` and ``head``.

    Raises:
        SnapshotError: it is damaged, of another projection, or folded by other code.
    """
    path = run_dir / SNAPSHOTS / projection.name
    try:
        if not path.exists():
            return None
        snapshot = _parse(_read(path))
    except OSError as error:
        raise SnapshotError(f"it cannot be read: {error}") from error
    if snapshot.projection != projection.name:
        raise SnapshotError(f"it is one of the {snapshot.projection} projection")
    if snapshot.code != code_version():
        raise SnapshotError("it is stale: another version of Esper folded it")
    return snapshot


def restore(projection: Projection[S], snapshot: Snapshot) -> S:
    """The state in ``snapshot``.

    Raises:
        SnapshotError: it holds none of this projection.
    """
    kind: type[S] = type(projection.initial)
    try:
        state = msgspec.msgpack.decode(snapshot.state, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise SnapshotError(f"it holds no state of the {projection.name}: {error}") from error
    if state.records != snapshot.seq or canonical_bytes(state) != snapshot.state:
        raise SnapshotError("its state is not the one that it was taken of")
    return state


@cache
def code_version() -> str:
    """Digest, in hex, of the sources that decide what a record folds to.

    Any change of them makes older snapshots stale, which costs one fold.
    """
    digest = hashlib.sha256(__version__.encode())
    for package in ("esper_events", "esper.projections"):
        sources = (entry for entry in files(package).iterdir() if entry.name.endswith(".py"))
        for source in sorted(sources, key=lambda entry: entry.name):
            content = hashlib.sha256(source.read_bytes()).hexdigest()
            digest.update(f"{package}/{source.name} {content}\n".encode())
    return digest.hexdigest()


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise SnapshotError("it is no regular file")
    with path.open("rb") as file:
        data = file.read(MAX_SNAPSHOT_BYTES + 1)
    if len(data) > MAX_SNAPSHOT_BYTES:
        raise SnapshotError(f"it is larger than {MAX_SNAPSHOT_BYTES} bytes")
    return data


def _parse(data: bytes) -> Snapshot:
    start = len(_MAGIC)
    digest, body = data[start : start + _DIGEST_BYTES], data[start + _DIGEST_BYTES :]
    if not data.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        raise SnapshotError("it is damaged: its digest does not fit its bytes")
    try:
        return msgspec.msgpack.decode(body, type=Snapshot)
    except (msgspec.MsgspecError, ValueError) as error:
        raise SnapshotError(f"it is no snapshot: {error}") from error
