"""Making a journal anew that is damaged, or has lost its end, with what the server holds of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count as numbers
from pathlib import Path

from esper.log.errors import ConflictError, JournalError
from esper.log.opening import TRAINER_KEY
from esper_events.errors import ChainError, KeyFileError, SegmentError
from esper_events.files import sync_directory, whole_file
from esper_events.framing import JOURNAL, LENGTH, frame
from esper_events.keys import PublicKey
from esper_events.newer import AuditVerifier
from esper_events.reader import borne_out, read_checkpoint
from esper_events.segment import MAGIC, Segment, open_segment

_Held = tuple[bytes, Segment]


@dataclass(frozen=True)
class Rebuilt:
    """``fetched`` segments of the journal are the server's; ``aside`` is the file as it was."""

    fetched: int
    aside: Path

    def __str__(self) -> str:
        return (
            f"{self.fetched} of its segments come from the server now, and the file as it was lies "
            f"in {self.aside}"
        )


def log_of(path: Path) -> str:
    """The id of the log whose journal ``path`` is, however damaged; raises ``JournalError``."""
    try:
        signed = read_checkpoint(path.parent.parent)
    except ChainError:
        signed = None
    if signed is not None:
        return signed.checkpoint.log
    for _, segment in _salvaged(path.read_bytes()):
        return segment.log
    raise JournalError(f"{JOURNAL} holds no valid segment, and no checkpoint tells whose it is")


def rebuild_journal(path: Path, stream: Sequence[bytes]) -> Rebuilt | None:
    """Have the journal ``path``, which nobody may be writing, hold all that it and ``stream`` hold
    of one history; None where it does already. The file as it was stays beside it.

    Every segment is proven to follow the one before, from the key on that lies in the run's
    directory, and the whole must bear out the run's signed checkpoint.

    Raises ``ConflictError`` where the two tell different histories, ``JournalError`` where what is
    missing in one is missing in the other.
    """
    before = path.read_bytes()
    held = list(_salvaged(before))
    try:
        chain, history = _history(path.parent.parent, held, stream)
    except ChainError as error:
        raise JournalError(f"journal and server together are not whole: {error}") from error
    _refuse_other_history(chain, held, set(history))
    after = b"".join(map(frame, history))
    if after == before:
        return None
    aside = _replace(path, after)
    own = {data for data, _ in held}
    return Rebuilt(sum(segment not in own for segment in history), aside)


def _history(
    run_dir: Path, held: Sequence[_Held], stream: Sequence[bytes]
) -> tuple[AuditVerifier, list[bytes]]:
    """What the server has, and what the journal has behind that."""
    chain, history = AuditVerifier(_trusted(run_dir)), list[bytes]()
    signed = read_checkpoint(run_dir)
    if signed is not None:
        chain.watch(signed.checkpoint.size)
    for segment in stream:
        chain.accept(segment)
        history.append(segment)
    behind = {s.previous: data for data, s in held if _is_signed(s, chain)}
    while (data := behind.get(chain.head)) is not None:
        chain.accept(data)
        history.append(data)
    if signed is not None:
        borne_out(signed, chain)
    return chain, history


def _trusted(run_dir: Path) -> PublicKey | None:
    path = run_dir / TRAINER_KEY
    try:
        return PublicKey.load(path) if path.exists() else None
    except KeyFileError as error:
        raise JournalError(f"the key that the run began with cannot be read: {error}") from error


def _salvaged(data: bytes) -> Iterator[_Held]:
    """What has the form of a segment, wherever it lies: a length before it may be what is damaged,
    so that it ends where the next one begins."""
    start = data.find(MAGIC)
    while start >= 0:
        following = data.find(MAGIC, start + 1)
        length = int.from_bytes(data[max(0, start - LENGTH.size) : start], "big")
        for end in (start + length, len(data) if following < 0 else following - LENGTH.size):
            try:
                yield data[start:end], open_segment(data[start:end])
            except SegmentError:
                continue
            break
        start = following


def _is_signed(segment: Segment, chain: AuditVerifier) -> bool:
    """Whether it is whole, and somebody's who writes in the log."""
    key = chain.writer(segment.key_id)
    return key is not None and segment.is_signed_by(key)


def _refuse_other_history(chain: AuditVerifier, held: Sequence[_Held], history: set[bytes]) -> None:
    """Whole segments of the journal that are no part of ``history`` are not damage."""
    for data, segment in held:
        if data not in history and _is_signed(segment, chain):
            raise ConflictError(
                f"the journal holds a segment that begins with event {segment.first_index} and is "
                "not the server's: another writer has used this log id, or has taken the run over"
            )


def _replace(path: Path, data: bytes) -> Path:
    """The file as it was, under its new name."""
    aside = next(
        free
        for free in (path.with_name(f"damaged-{number}") for number in numbers())
        if not free.exists()
    )
    aside.hardlink_to(path)
    sync_directory(path.parent)
    with whole_file(path, replace=True) as file:
        file.write(data)
    return aside
