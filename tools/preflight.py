"""Checks, before anything is installed, that this machine can build Esper.

Runs under the bare ``python3`` of the machine, so it uses nothing but the standard library.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path


def problems() -> list[str]:
    """What is missing, each with what to do about it."""
    found: list[str] = []
    if sys.version_info < (3, 11):  # noqa: UP036 - this file runs before anything is sure
        found.append(
            f"got Python {sys.version.split()[0]}, wanted 3.11 or later; "
            "name another one: make PYTHON=python3.12"
        )
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            found.append(f"Python has no {module}; on Debian: apt-get install python3-venv")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        found.append("Python's headers are missing; on Debian: apt-get install python3-dev")
    compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in compilers if name):
        found.append("no C++ compiler on PATH; on Debian: apt-get install g++")
    return found


def main() -> int:
    """Print the problems; the exit status says whether there are any."""
    for problem in problems():
        print(f"esper: {problem}", file=sys.stderr)
    return 1 if problems() else 0


if __name__ == "__main__":
    sys.exit(main())
