"""Prints what the project needs, with the named extras, one requirement a line.

``make`` installs these before it builds, so that the build finds the torch it will run with.
Usage: ``python tools/requirements.py [EXTRA ...]``.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements(extras: list[str]) -> list[str]:
    """Dependencies of the project and of ``extras``; a reference to another extra is followed."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    optional: dict[str, list[str]] = project["optional-dependencies"]
    own = project["name"]
    found: list[str] = list(project["dependencies"])
    waiting = list(extras)
    while waiting:
        for requirement in optional[waiting.pop()]:
            if requirement.startswith(f"{own}["):
                waiting += requirement[len(own) + 1 : -1].split(",")
            else:
                found.append(requirement)
    return found


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
