"""An exported file as a run directory again: `esper_events.export` the other way round."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from esper_events.anchor import Anchor
from esper_events.checkpoint import write_checkpoint
from esper_events.errors import ChainError, ImportRefusedError, cause
from esper_events.files import sync_directory
from esper_events.framing import JOURNAL, frame, read_frames
from esper_events.newer import AuditVerifier
from esper_events.reader import MAGIC, LogReader, read_footer


@dataclass(frozen=True, slots=True)
class Imported:
    """What the new directory holds."""

    log: str
    events: int
    segments: int
    ended: bool


def import_run(file: Path, run_dir: Path, trusted: Anchor | None = None) -> Imported:
    """Make the run directory ``run_dir`` from the exported ``file``.

    It appears whole, and only when every byte that was written there has been verified. An export
    holds the log alone: the directory has neither checkpoints of training nor objects.

    Args:
        trusted: the key or fingerprint that the log must bear out, where the caller knows one.

    Raises:
        ChainError: the file is no export, or it is damaged, or not of the trusted key.
        ImportRefusedError: ``run_dir`` is not empty, or cannot be written.
        OSError: the file cannot be read.
    """
    file, run_dir = Path(file), Path(run_dir)
    if run_dir.exists() and not (run_dir.is_dir() and not any(run_dir.iterdir())):
        raise ImportRefusedError(f"{run_dir} exists already; choose a directory that does not")
    for _ in (source := LogReader(file, trusted, verifier=AuditVerifier)).records():
        pass  # Nothing is written of a file that is not whole.
    with _appearing(run_dir) as draft:
        _copy(file, draft)
        for _ in (reader := LogReader(draft, trusted, verifier=AuditVerifier)).records():
            pass
        verifier = reader.verifier
        if verifier.head != source.verifier.head or reader.signed is None:
            raise ChainError(f"{file} was changed while it was read")
    return Imported(verifier.log, verifier.events, verifier.segments, verifier.ended)


@contextmanager
def _appearing(run_dir: Path) -> Iterator[Path]:
    """A directory that takes the name ``run_dir`` when the block ends without an exception."""
    draft = run_dir.with_name(f".{run_dir.name}.{secrets.token_hex(8)}")
    try:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
        yield draft
        draft.rename(run_dir)
        sync_directory(run_dir.parent)
    except OSError as error:
        raise ImportRefusedError(f"cannot write {run_dir}: {cause(error)}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy(file: Path, run_dir: Path) -> None:
    journal = run_dir / JOURNAL
    journal.parent.mkdir()
    with file.open("rb") as source, journal.open("wb") as target:
        source.seek(len(MAGIC))
        for _, segment in read_frames(source, len(MAGIC), terminated=True):
            target.write(frame(segment))
        note = read_footer(source).note()
        target.flush()
        os.fsync(target.fileno())
    sync_directory(journal.parent)
    write_checkpoint(run_dir, note)
    sync_directory(run_dir)
