"""How a checkpoint gets to disk and on record while training goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from esper.kasmina.digest import weights_digest
from esper.kasmina.host_optimizer import all_finite
from esper.log.copies import ObjectCopies
from esper.log.errors import LogError, NoRoomError, unwritten
from esper.log.objects import KEPT_CHECKPOINTS as KEPT
from esper.log.objects import named_checkpoints
from esper.tolaria.breaker import Log
from esper.tolaria.checkpoint import file
from esper_events.events import CheckpointWritten

_STATE, _MOMENTS = "host/state/", "optimizer/state/"
_ANSWER_SECONDS = 30.0
_CLOSE_SECONDS = 60.0
_logger = logging.getLogger("esper.tolaria")


class CheckpointWriter:
    """Writes one checkpoint after the other, each on a thread of its own.

    One is written when its file is durable and the log names it; a copy on the server may follow
    behind that, and nobody waits for it but :meth:`close`. What cannot be written is warned of.
    """

    def __init__(
        self,
        directory: Path,
        log: Log,
        copies: ObjectCopies | None,
        regular: Callable[[], Collection[int]],
    ) -> None:
        """``regular`` gives the steps whose files stay, besides the newest."""
        self.no_room: NoRoomError | None = None
        """Why the latest could not be written, where that is for want of room."""
        self._directory = directory
        self._log = log
        self._copies = copies
        self._regular = regular
        self._thread: threading.Thread | None = None
        self._written = threading.Event()
        self._written.set()

    @property
    def busy(self) -> bool:
        """Whether one is being written."""
        return not self._written.is_set()

    def start(self, step: int, packed: Any, tensors: dict[str, Tensor]) -> None:
        """Write the state of ``step`` in the background."""
        self._written = threading.Event()
        arguments = (step, packed, tensors, self._written)
        self._thread = threading.Thread(
            target=self._run, args=arguments, name="esper-checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until what is being written is written."""
        self._written.wait(_CLOSE_SECONDS)

    def close(self) -> None:
        """Wait for the copy too."""
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    def _run(
        self, step: int, packed: Any, tensors: dict[str, Tensor], written: threading.Event
    ) -> None:
        try:
            digest = self._write(step, packed, tensors)
        finally:
            written.set()
        newest = written is self._written  # Else its file may be gone before it is copied.
        if digest is not None and newest and self._copies is not None:
            self._renew_copies(self._copies, digest, file.path_of(self._directory, step))

    def _write(self, step: int, packed: Any, tensors: dict[str, Tensor]) -> str | None:
        """The digest of the file, where the log has taken it."""
        if not _sound(tensors):
            _logger.warning("no checkpoint of step %d is kept: its host holds no numbers", step)
            return None
        weights = weights_digest(
            (name.removeprefix(_STATE), tensor)
            for name, tensor in tensors.items()
            if name.startswith(_STATE)
        )
        try:
            digest = file.write(self._directory, step, packed, tensors)
            if self._copies is not None and self._copies.first:
                self._copies.send(digest, file.path_of(self._directory, step))
            event = CheckpointWritten(time=time.time(), step=step, file=digest, weights=weights)
            if not self._log.append(event).wait(_ANSWER_SECONDS):
                return None
            file.prune(self._directory, KEPT, self._regular())
            self.no_room = None
        except (OSError, SafetensorError, LogError) as error:
            self._tell(step, error, sum(tensor.nbytes for tensor in tensors.values()))
            return None
        return digest

    def _tell(self, step: int, error: Exception, size: int) -> None:
        if isinstance(error, OSError):
            error = unwritten(str(file.path_of(self._directory, step)), size, error)
        self.no_room = error if isinstance(error, NoRoomError) else self.no_room
        _logger.warning("the checkpoint of step %d is not kept: %s", step, error)

    def _renew_copies(self, copies: ObjectCopies, digest: str, path: Path) -> None:
        """Have this one on the server, and none that is too old to be gone on from."""
        if not copies.first:
            copies.send(digest, path)
        old = named_checkpoints(self._log.records())[:-KEPT]
        copies.remove([event.file for event in old])


def _sound(tensors: Mapping[str, Tensor]) -> bool:
    """Whether nobody would be sorry to go back to them; a buffer may hold infinities."""
    state = (t for name, t in tensors.items() if name.startswith(_STATE))
    moments = (t for name, t in tensors.items() if name.startswith(_MOMENTS))
    return all_finite(moments) and not any(bool(t.isnan().any()) for t in state)
