"""Errors of what leaves Esper and comes back."""

from __future__ import annotations


class PortableError(Exception):
    """Base of what saving, loading and exporting refuse."""


class ExportError(PortableError):
    """A grown model that has no plain equivalent, or has none yet."""


class StateError(PortableError):
    """A grown state that cannot be written, or that does not fit the model it is loaded into."""
