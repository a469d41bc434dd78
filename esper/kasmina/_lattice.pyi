"""Slot table, alpha schedules and telemetry ring of a lattice (compiled, see ``csrc/lattice``)."""

STAGES: tuple[str, ...]
"""Names of the stages, in the order of ``esper_events.stages.Stage``."""

TRANSITIONS: tuple[tuple[int, int], ...]
"""Legal steps, as pairs of positions in ``STAGES``."""

class IllegalTransition(ValueError):
    """A step that the stage table does not hold; the message names both stages."""

class UnknownSeed(KeyError):
    """A seed id that the table has not been given."""

class AlphaSchedule:
    """The normalised sigmoid: 0.0 at ``t <= 0``, 1.0 at ``t >= steps``, rising between.

    ``a(t) = (s((t - mid) / T) - s(-mid / T)) / (s((steps - mid) / T) - s(-mid / T))`` with ``s``
    the logistic function. ``midpoint`` (in steps) is half of ``steps`` unless given,
    ``temperature`` (in steps) an eighth. ValueError where the curve would not rise.
    """

    def __init__(
        self, steps: int, midpoint: float | None = None, temperature: float | None = None
    ) -> None: ...
    def value(self, t: int) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def midpoint(self) -> float: ...
    @property
    def temperature(self) -> float: ...

class SlotTable:
    """Which seeds live in which slot, at which stage, and how far each one is blended in.

    Stages are positions in ``STAGES``. Several seeds may share a slot. Every method that takes a
    seed raises UnknownSeed for an id that was not added.
    """

    def __init__(self) -> None: ...
    def add_seed(self, seed: int, slot: str) -> None:
        """Enter a seed as DORMANT; ValueError where the id is taken."""

    def advance(self, seed: int, stage: int) -> None:
        """Take one step of a seed's life; IllegalTransition where the table does not hold it."""

    def start_blend(self, seed: int, schedule: AlphaSchedule) -> None:
        """Start the blend of a seed in GRAFTING at alpha 0; ValueError in any other stage."""

    def tick(self) -> None:
        """Take one step of every blend that has started; a finished one stays at alpha 1."""

    def stage(self, seed: int) -> int:
        """Position in ``STAGES``."""

    def slot(self, seed: int) -> str: ...
    def alpha(self, seed: int) -> float:
        """0.0 before the blend and after a cull, the schedule's value within, 1.0 after."""

    def seeds(self) -> list[int]:
        """All ids, ascending."""

class TelemetryRing:
    """The last ``capacity`` records of ``width`` float64 figures each, by their step.

    Memory is allocated once; a push takes constant time and the oldest record makes room.
    ValueError where ``capacity`` or ``width`` is below 1.
    """

    def __init__(self, capacity: int, width: int) -> None: ...
    def push(self, step: int, record: object) -> None:
        """Keep a copy of a C-contiguous buffer of ``width`` float64 figures.

        ValueError where ``step`` is not above the last one, or the buffer is another.
        """

    def steps(self) -> list[int]:
        """Steps of the records kept, oldest first."""

    def records(self) -> bytes:
        """The records kept, oldest first: native float64, ``[len(ring), width]``."""

    def __len__(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def pushed(self) -> int:
        """Records pushed since the ring was made, those that have made room included."""
