"""Why something happened in a run: what the controller saw, and whether it would answer the same.

An auditor's view of a verified log: whatever the controller brought about names a consultation,
the log names its bytes by their digest, and from them the answer is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from msgspec import UNSET

from esper.log.objects import ObjectError, ObjectMissingError
from esper.tamiyo.consultation import (
    Consultation,
    ConsultationError,
    NotComputableError,
    read_consultation,
    read_policy,
    recompute,
    same_answer,
)
from esper.tamiyo.interface import Advance, Cull, Germinate, Plateau, Policy, Proposal
from esper_events.events import (
    BlueprintRegistered,
    ControllerConsulted,
    GateMeasured,
    PlateauDetected,
    Record,
    SeedFolded,
    TransitionApplied,
    TransitionDecided,
    TransitionLapsed,
    TrialMeasured,
    objective_of,
)
from esper_events.stages import LIVE, Stage

Verdict = Literal[
    "same", "differs", "damaged", "missing", "not on record", "not recomputed", "not asked"
]
"""Of an answer that is computed again. ``damaged``: a file is not what the log names; ``missing``:
there is none; ``not on record``: the log does not say which consultation led to a decision that a
controller alone takes; ``not recomputed``: there is no such controller here; ``not asked``: no
controller took this decision."""

HOLDS: frozenset[Verdict] = frozenset({"same", "not recomputed", "not asked"})
"""Verdicts that nothing speaks against."""

_UP = LIVE | {Stage.FOSSILIZED}
"""Stages that a seed enters only where a controller proposed it."""

Read = Callable[[str], bytes]
"""Gives the object of a digest. Raises ``ObjectError``."""


@dataclass(frozen=True)
class Answer:
    """A consultation, ``event`` at ``index``: what is on record of it, and what came of putting it
    again; None for what there is not, or cannot be read."""

    verdict: Verdict
    reason: str
    index: int | None = None
    event: ControllerConsulted | None = None
    policy: Policy | None = None
    asked: Consultation | None = None
    recomputed: tuple[Proposal, ...] | None = None


@dataclass(frozen=True)
class Explanation:
    """A consultation, or a decision; ``proposal`` is the one that led to it."""

    record: Record
    answer: Answer
    proposal: Proposal | None = None


@dataclass(frozen=True)
class Elsewhere:
    """Any other event; ``decision`` is the index of the decision that it belongs to, if any."""

    record: Record
    decision: int | None


class Reasons:
    """The verified ``records`` of a run, from the first on, and the objects that they name."""

    def __init__(self, records: Iterable[Record], read: Read) -> None:
        self._records = list(records)
        self._read = read
        self._answers: dict[int, Answer] = {}

    def __len__(self) -> int:
        return len(self._records)

    def all(self) -> Iterator[Explanation]:
        """Of every consultation, and every decision, in order."""
        for record in self._records:
            explained = self._explained(record)
            if explained is not None:
                yield explained

    def explain(self, index: int) -> Explanation | Elsewhere:
        """Why the event of this index is there."""
        record = self._records[index]
        return self._explained(record) or Elsewhere(record, self._decision_of(record))

    def _explained(self, record: Record) -> Explanation | None:
        match record.event:
            case ControllerConsulted(step=step):
                return Explanation(record, self._answer(step))
            case PlateauDetected(step=step) as plateau:
                return self._follows(record, step, lambda p: _notes(p, plateau))
            case TransitionDecided(consulted=step) as event if step is not UNSET:
                return self._follows(record, step, lambda p: self._leads(p, event))
            case TransitionDecided(target=target):
                silent = target in _UP or (target is Stage.CULLED and not self._consultations)
                return Explanation(record, _UNRECORDED if silent else _NOT_ASKED)
            case _:
                return None

    def _follows(self, record: Record, step: int, leads: Callable[[Proposal], bool]) -> Explanation:
        """``record`` against the consultation of ``step``, one of whose proposals led to it."""
        answer = self._answer(step)
        if answer.asked is None:
            return Explanation(record, answer)
        proposal = next(filter(leads, answer.asked.proposals), None)
        if proposal is None:
            reason = "no proposal of the answer on record leads to this decision"
            return Explanation(record, replace(answer, verdict="differs", reason=reason))
        return Explanation(record, answer, proposal)

    def _answer(self, step: int) -> Answer:
        if step not in self._answers:
            told = self._consultations.get(step)
            self._answers[step] = _UNRECORDED if told is None else self._put_again(*told)
        return self._answers[step]

    def _put_again(self, index: int, event: ControllerConsulted) -> Answer:
        answer = Answer("same", "the recomputed answer is the same", index, event)
        try:
            policy = read_policy(self._read(event.policy))
            answer = replace(answer, policy=policy)
            asked = read_consultation(self._read(event.consultation))
            answer = replace(answer, asked=asked)
        except ObjectMissingError as error:
            return replace(answer, verdict="missing", reason=str(error))
        except (ObjectError, ConsultationError) as error:
            return replace(answer, verdict="damaged", reason=str(error))
        if (policy.name, asked.observation.step) != (event.controller, event.step):
            reason = "name or step on record are not those of the event"
            return replace(answer, verdict="differs", reason=reason)
        try:
            recomputed = recompute(policy, asked)
        except NotComputableError as error:
            reason = f"it cannot be recomputed here: {error}"
            return replace(answer, verdict="not recomputed", reason=reason)
        except ConsultationError as error:
            return replace(answer, verdict="differs", reason=str(error))
        answer = replace(answer, recomputed=recomputed)
        if same_answer(recomputed, asked.proposals):
            return answer
        return replace(answer, verdict="differs", reason="the recomputed answer is another")

    def _leads(self, proposal: Proposal, event: TransitionDecided) -> bool:
        """Whether ``proposal``, with the gates' consent or for want of it, leads to ``event``."""
        match proposal:
            case Germinate(slot=slot, blueprint=name, objective=objective):
                told = event.slot, self._names.get(event.blueprint), objective_of(event.objective)
                return event.target is Stage.GERMINATED and told == (slot, name, objective)
            case Advance(seed=seed):
                return seed == event.seed and event.target is not Stage.GERMINATED
            case Cull(seed=seed):
                return seed == event.seed and event.target is Stage.CULLED
            case _:
                return False

    def _decision_of(self, record: Record) -> int | None:
        """The index of the decision that something else belongs to."""
        match record.event:
            case TransitionApplied(decision=number) | TransitionLapsed(decision=number):
                return self._decided.get(number)
            case SeedFolded(seed=seed):
                return self._nearest(
                    reversed(self._records[: record.index]),
                    lambda e: e.seed == seed and e.target is Stage.FOSSILIZED,
                )
            case GateMeasured(seed=seed, step=step):
                return self._nearest(
                    self._records[record.index :], lambda e: (e.seed, e.step) == (seed, step)
                )
            case TrialMeasured(seed=seed):
                return self._nearest(self._records[record.index :], lambda e: e.seed == seed)
            case _:
                return None

    @staticmethod
    def _nearest(
        records: Iterable[Record], wanted: Callable[[TransitionDecided], bool]
    ) -> int | None:
        for record in records:
            if isinstance(record.event, TransitionDecided) and wanted(record.event):
                return record.index
        return None

    @cached_property
    def _consultations(self) -> dict[int, tuple[int, ControllerConsulted]]:
        told = ((r.index, r.event) for r in self._records)
        return {e.step: (i, e) for i, e in told if isinstance(e, ControllerConsulted)}

    @cached_property
    def _decided(self) -> dict[int, int]:
        told = ((r.index, r.event) for r in self._records)
        return {e.decision: i for i, e in told if isinstance(e, TransitionDecided)}

    @cached_property
    def _names(self) -> dict[str, str]:
        told = (record.event for record in self._records)
        return {e.blueprint: e.name for e in told if isinstance(e, BlueprintRegistered)}


def _notes(proposal: Proposal, event: PlateauDetected) -> bool:
    held_out = event.figures.get("held_out_loss")
    return isinstance(proposal, Plateau) and proposal.loss == held_out


_UNRECORDED = Answer("not on record", "the log does not hold the consultation that led to this")
_NOT_ASKED = Answer("not asked", "no controller was asked: this follows by itself")
