"""JSON Schemas of the events: ``python -m esper_events.schemas DIRECTORY`` writes them.

They describe an event as JSON for tools that read exports of the log; bytes are base64 there. The
log itself is MessagePack: JSON has no NaN and no infinity, which a diverged loss needs.
"""

from __future__ import annotations

import json
import sys
import typing
from pathlib import Path
from typing import Any

import msgspec

from esper_events.events import Event
from esper_events.registry import RegistryEvent

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def kinds(catalogue: Any = Event) -> dict[str, type[msgspec.Struct]]:
    """Each kind of event with its struct, in the order of the catalogue: a run's, or another."""
    return {str(t.__struct_config__.tag): t for t in typing.get_args(catalogue)}


def all_kinds() -> dict[str, type[msgspec.Struct]]:
    """Those of runs, and then those of the registry."""
    return {**kinds(), **kinds(RegistryEvent)}


def schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of ``kind``.

    Raises:
        KeyError: no such kind.
    """
    return {"$schema": _DIALECT, "title": kind, **msgspec.json.schema(all_kinds()[kind])}


def files() -> dict[str, str]:
    """Name and text of each schema file."""
    return {f"{kind}.json": json.dumps(schema(kind), indent=2) + "\n" for kind in all_kinds()}


def main(directory: Path) -> None:
    """Write all schema files into ``directory``, which is created where it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m esper_events.schemas DIRECTORY")
    main(Path(sys.argv[1]))
