"""A run as one file, to be audited without its directory, a server, or the trainer's key.

Layout: `MAGIC`; the segments, each behind its 4-byte big-endian length; `END`; the
run's signed checkpoint behind its length, as the footer; nothing more. The footer is the writer's
own: it counts the events and commits to every one, so that a cut at a segment boundary shows, and
whoever exports needs no key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from esper_events.checkpoint import CHECKPOINT, SignedCheckpoint
from esper_events.errors import ChainError, ExportError
from esper_events.files import whole_file
from esper_events.framing import END, JOURNAL, LENGTH, frame, read_frames
from esper_events.newer import AuditVerifier
from esper_events.reader import MAGIC, LogReader, open_journal, read_checkpoint


@dataclass(frozen=True, slots=True)
class Exported:
    """What an exported file holds; ``whole`` tells that the journal held nothing beyond it."""

    events: int
    segments: int
    ended: bool
    whole: bool


def export_run(run_dir: Path, file: Path) -> Exported:
    """Write the run in ``run_dir`` to the new file ``file``, up to its signed checkpoint.

    What the writer has appended since its last checkpoint is left out (``whole`` is then False):
    nothing in the file would vouch for it.

    Raises:
        ChainError: there is no run, or it is damaged.
        ExportError: the run has no checkpoint yet, or the file cannot be written.
        OSError: the run cannot be read.
    """
    run_dir, file = Path(run_dir), Path(file)
    with open_journal(run_dir) as journal:
        signed = read_checkpoint(run_dir)
        if signed is None:
            for _ in LogReader(run_dir, verifier=AuditVerifier).records():
                pass  # A damaged one has nothing to wait for.
            raise ExportError(
                f"{run_dir} has no checkpoint: its writer signs one when the run closes. "
                "Export it then"
            )
        try:
            with whole_file(file) as target:
                return _copy(journal, signed, target)
        except FileExistsError as error:
            raise ExportError(f"{file} exists already; choose another name") from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise ExportError(f"cannot export {run_dir} to {file}: {reason}") from error


def _copy(journal: BinaryIO, signed: SignedCheckpoint, target: BinaryIO) -> Exported:
    checkpoint, verifier, whole = signed.checkpoint, AuditVerifier(), True
    target.write(MAGIC)
    for offset, segment in read_frames(journal):
        if verifier.events >= checkpoint.size:
            whole = False
            break
        verifier.accept(segment, offset + LENGTH.size)
        target.write(frame(segment))
    agrees = (checkpoint.log, checkpoint.size) == (verifier.log, verifier.events)
    if not agrees or checkpoint.root != verifier.tree.root():
        raise ChainError(f"{JOURNAL} and {CHECKPOINT} do not agree")
    if verifier.authority.refuses(signed, "its checkpoint") is not None:
        raise ChainError(f"{CHECKPOINT} is not signed by the run's key")
    note = signed.note()
    target.write(END + LENGTH.pack(len(note)) + note)
    return Exported(verifier.events, verifier.segments, verifier.ended, whole)
