"""What a controller sees and what it may ask for; the rules and the learned policy share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import msgspec

from esper_events.events import Objective
from esper_events.stages import Stage


@dataclass(frozen=True)
class Candidate:
    """A blueprint that fits a free slot, and what it would add."""

    slot: str
    blueprint: str
    parameters: int


@dataclass(frozen=True)
class SeedView:
    """A live seed.

    ``age`` counts steps in its stage; ``gains`` are its measured relative reductions of the
    held-out loss while in TRAINING, oldest first; ``ready`` tells that the next gate can be
    asked; ``pending`` that a decision about it is under way.
    """

    id: int
    slot: str
    blueprint: str
    stage: Stage
    age: int
    shadow_steps: int
    gains: tuple[float, ...]
    ready: bool
    pending: bool
    refusals: int
    objective: Objective = "shadow"


@dataclass(frozen=True)
class Observation:
    """The state of a run at one step; ``held_out`` holds (step, loss), oldest first."""

    step: int
    held_out: tuple[tuple[int, float], ...]
    candidates: tuple[Candidate, ...]
    seeds: tuple[SeedView, ...]
    fossils: int


class _Proposal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    pass


class Plateau(_Proposal, frozen=True, tag="plateau"):
    """Put on the record that the held-out loss, now ``loss``, has stopped falling."""

    loss: float


class Germinate(_Proposal, frozen=True, tag="germinate"):
    """Start a trial of ``blueprint`` in ``slot``, in which the seed learns from ``objective``."""

    slot: str
    blueprint: str
    reason: str
    objective: Objective = "shadow"


class Advance(_Proposal, frozen=True, tag="advance"):
    """Ask the next gate of ``seed``."""

    seed: int
    reason: str


class Cull(_Proposal, frozen=True, tag="cull"):
    """End the trial of ``seed``."""

    seed: int
    reason: str


Proposal = Plateau | Germinate | Advance | Cull


class Controller(Protocol):
    """Decides where, when and what to grow; it proposes, and the gates dispose.

    An :class:`Advance` of a seed that is not ``ready`` or is ``pending`` is passed over; a
    :class:`Cull` makes what is pending lapse.
    """

    def decide(self, observation: Observation) -> list[Proposal]:
        """Proposals for ``observation``; an empty list waits."""
        ...


@runtime_checkable
class Restorable(Protocol):
    """A controller that a run can go on with after it was killed.

    ``state`` is all that :meth:`Controller.decide` remembers, in numbers, text, lists, tuples and
    mappings of them; ``restore`` takes it in a new controller that was made in the same way. A
    controller that remembers nothing has an empty state. Without these two a run is not kept in
    checkpoints, and one that was killed is trained again from its start.
    """

    def state(self) -> Any: ...

    def restore(self, state: Any) -> None: ...


@dataclass(frozen=True)
class Policy:
    """What a controller decides by.

    ``name`` is one of its own choice that outlives any refactoring, so no Python path;
    ``version`` rises when the same observation may get another answer; ``settings`` are numbers,
    text, lists and mappings of them by text.
    """

    name: str
    version: int
    settings: Mapping[str, Any]


UNNAMED = Policy("", 0, {})
"""Of a controller that does not tell."""


@runtime_checkable
class Described(Protocol):
    """A controller that tells what it decides by; a subclass that decides otherwise than its base
    has a policy of another name."""

    @property
    def policy(self) -> Policy: ...
