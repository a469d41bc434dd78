"""What spoils a host is ended, and the host brought back from it."""

from __future__ import annotations

import logging

from torch import Tensor

from esper.tolaria.context import Context
from esper.tolaria.decisions import Decisions
from esper.tolaria.explosion import TrainingLoss
from esper.tolaria.rollback import Rollbacks
from esper.tolaria.transitions import Transitions
from esper.tolaria.watch import Watch
from esper_events.stages import BLENDED

_logger = logging.getLogger("esper.tolaria")

_UNCURED = (
    "the run keeps no checkpoints (checkpoint_every) or rollbacks = 0, so it goes on as it is"
)


class Recovery:
    """A graft that fails or explodes is culled; a host that is spoilt all the same goes back to a
    checkpoint, by ``rollbacks`` where the run has them."""

    def __init__(
        self,
        context: Context,
        transitions: Transitions,
        decisions: Decisions,
        watch: Watch,
        rollbacks: Rollbacks | None,
    ) -> None:
        self.rollbacks = rollbacks if context.settings.rollbacks else None
        self._lattice = context.lattice
        self._transitions = transitions
        self._decisions = decisions
        self._watch = watch
        self._training_loss = TrainingLoss(context.settings.explosion)

    @property
    def ailing(self) -> bool:
        """Whether the host is spoilt, and can be brought back, or is about to be."""
        if self.rollbacks is None:
            return False
        curable = self._watch.spoilt and not self.rollbacks.none_left
        return bool(curable or self.rollbacks)

    @property
    def well(self) -> bool:
        """Whether the host is good to be gone back to, for all that is known."""
        rollbacks = self.rollbacks
        return rollbacks is None or not (self._watch.spoilt or rollbacks or rollbacks.on_probation)

    def judge_graft(self, step: int, loss: Tensor | float | None) -> None:
        """End the seed under test where it has failed in the host's own pass, or spoilt it."""
        if self._transitions.fork is None:
            self._training_loss.forget()
            return
        # A loss of the loop still carries its graph, of which a plain float() warns.
        value = float(loss.detach() if isinstance(loss, Tensor) else loss or 0.0)
        exploded = loss is not None and self._training_loss.explodes(value)
        for trial in self._watch.in_stages(BLENDED):
            if fault := self._lattice.fault(trial.seed.id):
                trial.broken = f"it failed in the host: {fault}"
            elif exploded:
                trial.broken = f"training loss exploded to {value:g}"
            if trial.broken and self._decisions.allowed(step):
                self._transitions.cull(trial, step, trial.broken, delay=0)

    def judge_host(self, step: int, *, was_well: bool) -> None:
        """Hear what the observation of ``step`` has found."""
        spoilt = self._watch.spoilt
        if self.rollbacks is not None:
            self.rollbacks.judged(step, spoilt=bool(spoilt))
        for trial in self._watch.in_stages(BLENDED):
            trial.broken = trial.broken or spoilt
        if was_well and spoilt and not (self.ailing or self._lattice.blended):
            _logger.warning("step %d: %s; %s", step, spoilt, _UNCURED)

    def go_back(self, step: int, *, wait: bool = False) -> bool:
        """Do what is decided, as far as the log has it; whether the host went back."""
        return self.rollbacks is not None and self.rollbacks.settle(step, wait=wait)

    def advance(self, step: int) -> None:
        """End what is on trial in a spoilt host, and then let it go back to a checkpoint.

        A graft is ended first, and may have been all that was wrong.
        """
        if self.rollbacks is None or self.rollbacks or not self._decisions.allowed(step):
            return
        for trial in list(self._transitions.trials.values()):
            self._transitions.cull(trial, step, self._watch.spoilt, delay=0)
        if self._transitions.quiet and self._decisions.quiet:
            self.rollbacks.decide(step, self._watch.spoilt, self._transitions.snapshot())
