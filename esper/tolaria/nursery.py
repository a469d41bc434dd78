"""The way of a seed into its trial, in pieces that a safe point can afford.

Building a seed, asking the gate to germination, and each part of the contract check take up to a
training step of a small host, and a tournament begins many seeds at once. So a safe point does one
piece, for the seed that has come least far: seeds that are proposed together begin their trials at
neighbouring steps. Which piece is done at which step depends on the run alone, never on time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from esper.blueprints.build import applies
from esper.blueprints.ir import Blueprint
from esper.tamiyo.interface import Germinate
from esper.tolaria.context import Context
from esper.tolaria.decisions import Decisions
from esper.tolaria.gatekeeper import Gatekeeper
from esper.tolaria.transitions import Transitions
from esper.tolaria.trials import Trial, live_stage, new_seed
from esper_events.events import Objective
from esper_events.stages import Stage


@dataclass(eq=False)
class _Job:
    """Work on one seed, of which so many pieces are done."""

    pieces: Iterator[None]
    done: int = 0


class Nursery:
    """Seeds that are to germinate, or are checked before they may train."""

    def __init__(
        self,
        context: Context,
        transitions: Transitions,
        decisions: Decisions,
        gatekeeper: Gatekeeper,
    ) -> None:
        self.made = 0
        """Seeds that were built so far; the number of the next one."""
        self._context = context
        self._lattice = context.lattice
        self._library: Mapping[str, Blueprint] = {b.name: b for b in context.library}
        self._transitions = transitions
        self._decisions = decisions
        self._gatekeeper = gatekeeper
        self._jobs: list[_Job] = []
        self._unborn = 0
        self._step = 0

    def __bool__(self) -> bool:
        """Whether there is anything left to do."""
        return bool(self._jobs)

    @property
    def settled(self) -> bool:
        """Whether all that was to germinate is on trial, or refused."""
        return not self._unborn

    def germinate(self, wanted: Germinate, consulted: int) -> None:
        """Build a seed and ask the gate to germination, from the next safe point on, as the
        controller proposed at step ``consulted``.

        Raises:
            ValueError: no host and library like these allow it.
        """
        self._check_place(wanted.slot, wanted.blueprint)
        if wanted.objective not in get_args(Objective):
            known = ", ".join(get_args(Objective))
            raise ValueError(
                f"the controller names objective {wanted.objective!r}, wanted one of {known}"
            )
        self._unborn += 1
        self._jobs.append(_Job(self._germination(wanted, consulted)))

    def admit(self, trial: Trial, reason: str, consulted: int) -> None:
        """Check a germinated seed and ask the gate to training, from the next safe point on, as
        the controller proposed at step ``consulted``."""
        trial.entering = True
        self._jobs.append(_Job(self._admission(trial, reason, consulted)))

    def advance(self, step: int) -> None:
        """Do the next piece, at the safe point of ``step``."""
        self._step = step
        job = min(self._jobs, key=lambda job: job.done)
        job.done += 1
        for _ in job.pieces:
            return
        self._jobs.remove(job)

    def clear(self) -> None:
        """Forget what is left to do: the run ends."""
        self._jobs.clear()
        self._unborn = 0

    def _germination(self, wanted: Germinate, consulted: int) -> Iterator[None]:
        number, self.made = self.made, self.made + 1
        slot, blueprint = self._lattice.map.slots[wanted.slot], self._library[wanted.blueprint]
        seed = new_seed(number, slot, blueprint, self._context.run_seed, wanted.objective)
        trial = Trial(seed, blueprint, since=self._step)
        yield
        self._unborn -= 1
        if self._gatekeeper.ask(trial, self._step).passed:
            self._transitions.germinate(trial, self._step, wanted.reason, consulted)

    def _admission(self, trial: Trial, reason: str, consulted: int) -> Iterator[None]:
        problems: list[str] = []
        parts = self._gatekeeper.examine(trial)
        while self._waits(trial) and not problems:
            found = next(parts, None)
            if found is None:
                break
            problems = found
            if not problems:
                yield
        trial.entering = False
        if not self._waits(trial):
            return
        result = self._gatekeeper.ask(trial, self._step, problems)
        if result.passed:
            why = f"{reason}: {result.reason}"
            self._transitions.advance(trial, self._step, why, consulted)
        else:
            self._transitions.cull(trial, self._step, result.reason, consulted=consulted)

    def _waits(self, trial: Trial) -> bool:
        """Whether nothing has happened to the seed meanwhile, and nothing is decided."""
        germinated = live_stage(self._lattice, trial) is Stage.GERMINATED
        return germinated and not self._decisions.pending(trial.seed.id)

    def _check_place(self, slot: str, name: str) -> None:
        if slot not in self._lattice.map.slots:
            known = ", ".join(self._lattice.map.slots)
            raise ValueError(f"the controller names slot {slot!r}, wanted one of {known}")
        if name not in self._library:
            known = ", ".join(self._library)
            raise ValueError(f"the controller names blueprint {name!r}, wanted one of {known}")
        place, blueprint = self._lattice.map.slots[slot], self._library[name]
        obstacle = applies(blueprint, place)
        if blueprint.source != place.source:
            obstacle = f"it reads {blueprint.source}, the slot gives {place.source}"
        if obstacle is not None:
            raise ValueError(f"the controller puts {name!r} into slot {slot!r}: {obstacle}")
