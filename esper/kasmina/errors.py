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
