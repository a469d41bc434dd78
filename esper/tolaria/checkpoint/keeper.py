"""When a checkpoint is taken, and which one counts.

A checkpoint counts when the log names the SHA-256 of its file. The newest one that does, and
whose file is there and whole, is where a run that was killed goes on.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper.log.copies import ObjectCopies
from esper.log.errors import NoRoomError
from esper.log.objects import KEPT_CHECKPOINTS as KEPT
from esper.log.objects import named_checkpoints
from esper.tolaria.breaker import Log
from esper.tolaria.checkpoint import file
from esper.tolaria.checkpoint.file import CheckpointError
from esper.tolaria.checkpoint.host import HostState
from esper.tolaria.checkpoint.training import Lifecycle, Training
from esper.tolaria.checkpoint.values import Packer, ValueRefusedError
from esper.tolaria.checkpoint.writing import CheckpointWriter
from esper.tolaria.heldout import HeldOut
from esper_events.events import CheckpointWritten, Record, RollbackDecided

_logger = logging.getLogger("esper.tolaria")


@dataclass(frozen=True)
class Kept:
    """A checkpoint that was read: the state of training after ``step``."""

    step: int
    state: Mapping[str, Any]

    @property
    def seeds(self) -> Mapping[str, Any]:
        """What the engine remembered."""
        seeds: Mapping[str, Any] = self.state["seeds"]
        return seeds

    def with_parts(self, given: HeldOut | None) -> HeldOut:
        """The held-out batches: those ``given``, or the training batches that the run had kept
        back for them.

        Raises:
            CheckpointError: there is none of these, or both.
        """
        parts: dict[str, Any] | None = self.state["parts"]
        if given is not None and parts is None:
            return given
        if given is None and parts is not None:
            return HeldOut(**parts)
        had = "no probe batches" if given is not None else "probe batches"
        raise CheckpointError(f"the run that was killed had {had}: make it as it was made then")


class Checkpoints:
    """The checkpoints of one run: training waits while its state is copied, and for no disk.

    What cannot be written is warned of, and training goes on. ``copies`` has them on the server.
    """

    def __init__(
        self,
        run_dir: Path,
        every: int,
        log: Log,
        training: Training,
        copies: ObjectCopies | None = None,
        *,
        sync: bool = False,
    ) -> None:
        """With ``sync`` one that is due waits for the one before to be written, so that nothing
        but the run decides of which steps there are any."""
        self.next_step = every
        """A checkpoint is due from this step on, as soon as nothing is on trial."""
        self._newest = 0
        self._directory = run_dir / file.DIRECTORY
        self._every = every
        self._log = log
        self._copies = copies
        self._training = training
        self._sync = sync
        self._writer = CheckpointWriter(self._directory, log, copies, self._regular_steps)
        self._expected: frozenset[int] = frozenset()
        self._remembered: dict[int, Kept] = {}

    @property
    def no_room(self) -> NoRoomError | None:
        """Why one could not be written, where that is for want of room."""
        return self._writer.no_room

    @property
    def host(self) -> HostState:
        """The part that can be put back while the run goes on."""
        return self._training.host

    def expect(self, records: Iterable[Record]) -> None:
        """Keep in memory what ``records``, which training has yet to catch up with, go back to:
        its file may be gone."""
        told = (record.event for record in records)
        self._expected = frozenset(e.to_step for e in told if isinstance(e, RollbackDecided))

    def at(self, step: int, digest: str) -> Kept:
        """The checkpoint of ``step``, from memory or from its file, which has this SHA-256.

        Raises:
            CheckpointError: it is gone.
        """
        kept = self._remembered.get(step)
        return kept or Kept(step, file.read(file.path_of(self._directory, step), digest))

    def offer(self, step: int, seeds: Lifecycle, parts: HeldOut) -> None:
        """Take one of ``step`` where it is due, unless the one before is still being written.

        All is copied now; the file, and the event that names it, follow in the background.
        """
        if step in self._expected and step not in self._remembered:
            self._remembered[step] = Kept(step, {"seeds": seeds.snapshot(), **self.host.copied()})
        if step < self.next_step or not seeds.quiet:
            return
        if self._sync:
            self._writer.wait()
        if not self._writer.busy:
            self._take(step, seeds, parts)

    def offer_last(self, step: int, seeds: Lifecycle, parts: HeldOut) -> None:
        """Take one of ``step``, due or not, and wait until it is written: training stops here."""
        self.close()
        if step > self._newest and self.next_step < sys.maxsize and seeds.quiet:
            self._take(step, seeds, parts)
            self.close()

    def _take(self, step: int, seeds: Lifecycle, parts: HeldOut) -> None:
        """Begin to write one."""
        self._schedule_after(step)
        state = {"parts": _as_value(parts), **self._training.take(seeds)}
        packer = Packer()
        try:
            packed = {"dict": [[name, packer.pack(part, name)] for name, part in state.items()]}
        except ValueRefusedError as error:
            self.next_step = sys.maxsize
            _logger.warning("no checkpoints are taken, they could not hold the run: %s", error)
            return
        self._writer.start(step, packed, packer.tensors)

    def newest(self, records: Iterable[Record]) -> Kept | None:
        """The newest checkpoint that counts; None where there is none."""
        return next((kept for _, kept in self._whole(named_checkpoints(records))), None)

    def regular(self) -> Iterator[tuple[CheckpointWritten, Kept]]:
        """The checkpoints that count and that a run has which was never left, the newest first,
        each read when it is asked for."""
        if self._sync:
            self._writer.wait()
        return self._whole(self._regular())

    def _regular(self) -> list[CheckpointWritten]:
        """Each the first from a multiple of the configured steps on."""
        found: list[CheckpointWritten] = []
        due = self._every
        for event in named_checkpoints(self._log.records()):
            if event.step >= due:
                found.append(event)
                due = self._due_after(event.step)
        return found

    def _regular_steps(self) -> set[int]:
        """Those whose files stay."""
        return {event.step for event in self._regular()[-KEPT:]}

    def _whole(
        self, ordered: Sequence[CheckpointWritten]
    ) -> Iterator[tuple[CheckpointWritten, Kept]]:
        """One that should be there is warned of where it is not."""
        for age, event in enumerate(reversed(ordered)):
            path = file.path_of(self._directory, event.step)
            try:
                yield event, Kept(event.step, self._read(path, event.file, age))
            except CheckpointError as error:
                if age < KEPT or path.exists():
                    _logger.warning("the checkpoint %s is passed over: %s", path, error)

    def _read(self, path: Path, digest: str, age: int) -> Any:
        """What the file holds; as the server has it, where the file is gone or damaged."""
        try:
            return file.read(path, digest)
        except CheckpointError:
            copies = self._copies if age < KEPT else None
            if copies is None or not copies.fetch(digest, path):
                raise
            return file.read(path, digest)

    def forget_unnamed(self, records: Iterable[Record]) -> None:
        """Remove the files that no record names: of a run that was killed before it could tell of
        them, or that another has taken over. They would count as the newest."""
        file.keep_only(self._directory, {event.step for event in named_checkpoints(records)})

    def put_back(self, kept: Kept) -> None:
        """Go on from a checkpoint whose seeds are in place again.

        Raises:
            CheckpointError: model, optimizer or objects are not made as they were then.
        """
        try:
            self._training.put_back(kept.state)
        except CheckpointError as error:
            told = f"the checkpoint of step {kept.step} does not fit: {error}"
            raise CheckpointError(told) from error
        if kept.step in self._expected:
            self._remembered[kept.step] = kept
        self._schedule_after(kept.step)

    def _schedule_after(self, step: int) -> None:
        self._newest = step
        self.next_step = self._due_after(step)

    def _due_after(self, step: int) -> int:
        return (step // self._every + 1) * self._every

    def close(self) -> None:
        """Wait for what is being written, and for its copy."""
        self._writer.close()


def _as_value(parts: HeldOut) -> dict[str, Any] | None:
    """Batches that training has passed; those that the user gave are given again."""
    return None if parts.origin == "probe" else dict(vars(parts))
