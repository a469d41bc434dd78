"""Errors of the execution layer."""

from __future__ import annotations


class KasminaError(Exception):
    """Base of everything that the execution layer refuses."""


class SlotError(KasminaError):
    """A slot that does not exist, or a module where no seed can live."""


class IsolationError(KasminaError):
    """The host cannot be kept apart from a seed, or was not."""


class ObjectiveError(KasminaError):
    """The loss function did not return what a seed can learn from."""


SEED_FAULTS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    MemoryError,
)
"""What a seed's body raises on an activation that it cannot take. The trial then ends, and the
host trains on; a fault of the user's own objective shows in the host's pass just as well."""


class Faults:
    """What a seed has raised in the host's forward path, the first first.

    It is no state of the host's: what is put back behind a guarded pass is not this, so that what
    went wrong in one is known afterwards.
    """

    def __init__(self) -> None:
        self.first = ""

    def note(self, error: Exception) -> None:
        """Remember ``error``."""
        self.first = self.first or f"{type(error).__name__}: {error}"
