"""Esper: neural networks that grow while they train, on the record.

Importing this package is cheap: torch is loaded when :class:`Growth` is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper.kasmina.slot_types import register_slot_type
    from esper.kasmina.slots import slots
    from esper.portable.export import export
    from esper.portable.storage import load, save
    from esper.telemetry.inspection import inspect
    from esper.tolaria.growth import Growth
    from esper.tolaria.preflight import check_isolation
    from esper.tolaria.settings import GrowthSettings

__version__ = "0.1.0"
__all__ = [
    "Growth",
    "GrowthSettings",
    "__version__",
    "check_isolation",
    "export",
    "inspect",
    "load",
    "register_slot_type",
    "save",
    "slots",
]

_HOMES = {
    "Growth": "esper.tolaria.growth",
    "GrowthSettings": "esper.tolaria.settings",
    "check_isolation": "esper.tolaria.preflight",
    "export": "esper.portable.export",
    "inspect": "esper.telemetry.inspection",
    "load": "esper.portable.storage",
    "register_slot_type": "esper.kasmina.slot_types",
    "save": "esper.portable.storage",
    "slots": "esper.kasmina.slots",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'esper' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
