"""Where a journal's end goes that is no part of the run: aside, never away."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count as numbers
from itertools import islice
from pathlib import Path

from esper.log.errors import JournalError
from esper.log.journal import JournalStore
from esper_events.checkpoint import CHECKPOINT
from esper_events.errors import ChainError
from esper_events.files import sync_directory, whole_file
from esper_events.framing import frame
from esper_events.reader import read_checkpoint
from esper_events.segment import open_segment

QUARANTINE = "quarantine"


def set_aside(run_dir: Path, journal: JournalStore, keep: int) -> Path | None:
    """Keep what ``journal`` holds behind its first ``keep`` segments in a file of ``run_dir``,
    framed as it was there, whose name tells the lease epoch and the index of its first event. So
    does the run's signed checkpoint if it commits to any of that. The journal itself is untouched.

    None where it holds no more. Raises ``JournalError`` when it cannot be written.
    """
    suffix = list(journal.read(keep))
    if not suffix:
        return None
    first = open_segment(suffix[0])
    directory = run_dir / QUARANTINE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        sync_directory(run_dir)
        path = _keep(directory, f"epoch-{first.epoch}-event-{first.first_index}", suffix)
        _set_checkpoint_aside(run_dir, path, first.first_index)
    except OSError as error:
        raise JournalError(f"cannot set aside into {directory}: {error}") from error
    return path


def drop_suffix(run_dir: Path, journal: JournalStore, keep: int) -> Path | None:
    """`set_aside`, then let the journal end there."""
    path = set_aside(run_dir, journal, keep)
    if path is not None:
        journal.replace(list(islice(journal.read(), keep)))
    return path


def _keep(directory: Path, name: str, segments: Sequence[bytes]) -> Path:
    """Under ``name``, or the next free one; the same bytes once."""
    data = b"".join(map(frame, segments))
    names = (f"{name}.segments" if n == 1 else f"{name}-{n}.segments" for n in numbers(1))
    path = next(
        path
        for path in map(directory.joinpath, names)
        if not path.exists() or path.read_bytes() == data
    )
    if not path.exists():
        with whole_file(path) as file:
            file.write(data)
    return path


def _set_checkpoint_aside(run_dir: Path, beside: Path, events: int) -> None:
    """Where it commits to more than the first ``events`` events."""
    try:
        signed = read_checkpoint(run_dir)
    except ChainError:
        return  # It commits to nothing.
    if signed is not None and signed.checkpoint.size > events:
        (run_dir / CHECKPOINT).replace(beside.with_suffix(".checkpoint"))
        sync_directory(beside.parent)
        sync_directory(run_dir)
