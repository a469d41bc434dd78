"""What a run tells whoever watches it, while it runs and at its end. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from esper_events.events import Record
from esper_events.stages import Stage

Part = Literal["grown", "host alone", "grown shape from the start", "re-run"]
"""The three trainings of a run, the one that grows and the two that it is compared with; and a
run that is trained again from its log."""


class SeedRow(msgspec.Struct, frozen=True, kw_only=True):
    """One seed as a person sees it. ``parameters`` are those that it adds to the host, none where
    it was ``folded`` into a module's weights; ``gain`` is its last measured relative reduction of
    the held-out loss (None before the first measurement)."""

    seed: int
    slot: str
    blueprint: str
    stage: Stage
    alpha: float
    parameters: int
    gain: float | None = None
    folded: bool = False


class Grown(msgspec.Struct, frozen=True, kw_only=True):
    """A run's end. Accuracies in percent of the test part, losses its mean cross-entropy in nats;
    ``data`` names the data set; ``head`` and ``final_weights`` in hex; ``fossils`` counts what has
    grown, folded or not.

    ``resumed_at`` is the step after which a resumed run went on, ``behind`` counts the segments
    that the server still lacks, ``breakers`` are the circuit breakers as the run left them.
    ``log_failure`` tells why the log holds no more than it does; it is empty for a whole one.
    """

    run: str
    run_dir: str
    events: int
    segments: int
    head: str
    final_weights: str
    data: str
    steps: int
    resumed_at: int = 0
    test_accuracy: float
    test_loss: float
    parameters: int
    fossils: int
    behind: int = 0
    breakers: dict[str, str] = {}
    log_failure: str = ""


class Outcome(Grown, frozen=True, kw_only=True):
    """A run's end beside its two controls: ``control`` figures are of the host alone for as many
    steps, ``static`` ones of the grown shape trained from the start."""

    control_accuracy: float
    control_loss: float
    static_accuracy: float
    static_loss: float
    control_parameters: int
    static_parameters: int


class Observer(Protocol):
    """Methods are called from the training thread, between two steps; they must be quick."""

    def part(self, name: Part, steps: int) -> None:
        """A training of ``steps`` steps begins."""

    def resumed(self, step: int) -> None:
        """The training that has begun goes on after ``step``; 0 is its start."""

    def progress(self, step: int, steps: int, loss: float, accuracy: float | None) -> None:
        """Step ``step`` of ``steps`` is done: training loss, and the latest held-out accuracy in
        percent (None before the first)."""

    def event(self, record: Record) -> None:
        """An event has been acknowledged by the log."""

    def seeds(self, rows: Sequence[SeedRow]) -> None:
        """The seeds as they stand now; sent when something about them has changed."""

    def breakers(self, states: Mapping[str, str]) -> None:
        """The state of each circuit breaker, by what it is in front of; sent when one has
        changed, also while the log takes no event that says so."""


class Silent:
    """An observer that shows nothing."""

    def part(self, name: Part, steps: int) -> None:
        """Show nothing."""

    def resumed(self, step: int) -> None:
        """Show nothing."""

    def progress(self, step: int, steps: int, loss: float, accuracy: float | None) -> None:
        """Show nothing."""

    def event(self, record: Record) -> None:
        """Show nothing."""

    def seeds(self, rows: Sequence[SeedRow]) -> None:
        """Show nothing."""

    def breakers(self, states: Mapping[str, str]) -> None:
        """Show nothing."""
