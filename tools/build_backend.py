"""setuptools' build backend, plus torch as a build requirement where none is installed.

torch is not in ``build-system.requires``: pip would download a second one, often of the wrong
kind, for its headers alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

from find_torch import torch_dir

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"


def pinned_torch() -> str:
    """The requirement ``torch==...`` of the project's pinned set."""
    found = re.search(r"(?m)^torch==\S+", CONSTRAINTS.read_text())
    if found is None:
        raise SystemExit(f"esper: {CONSTRAINTS} pins no torch")
    return found[0]


def _with_torch(requires: list[str]) -> list[str]:
    return requires if torch_dir() is not None else [*requires, pinned_torch()]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    return _with_torch(build_meta.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    return _with_torch(build_meta.get_requires_for_build_editable(config_settings))
