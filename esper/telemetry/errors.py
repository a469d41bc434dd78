"""What telemetry refuses."""

from __future__ import annotations


class TelemetryError(Exception):
    """Something cannot be measured as asked; the message says what to do."""
