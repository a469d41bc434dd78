"""Finds the installed torch whose headers the operators are compiled against.

It is found by its files and never imported: under build isolation it lies in the environment
that called pip, outside ``sys.path``.
"""

from __future__ import annotations

import os
import re
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

OLDEST = (2, 11)


def torch_dir() -> Path | None:
    """The folder of a torch of at least ``OLDEST``, or None.

    ``ESPER_TORCH_DIR`` (a torch folder) wins; then ``sys.path``, the environment of the running
    interpreter, and the activated virtual environment (``VIRTUAL_ENV``).
    """
    asked = os.environ.get("ESPER_TORCH_DIR")
    if asked:
        if not _fits(Path(asked)):
            sys.exit(
                f"esper: got ESPER_TORCH_DIR={asked}, wanted the folder of an installed torch "
                f"of {OLDEST[0]}.{OLDEST[1]} or later"
            )
        return Path(asked)
    return next((path for path in _candidates() if _fits(path)), None)


def _candidates() -> Iterator[Path]:
    paths = [Path(entry) for entry in sys.path if entry]
    paths += [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    if _sees_system_packages():
        paths += [Path(entry) for entry in site.getsitepackages([sys.base_prefix])]
    if environment := os.environ.get("VIRTUAL_ENV"):
        paths += Path(environment).glob("lib/python*/site-packages")
    for path in paths:
        yield path / "torch"


def _sees_system_packages() -> bool:
    config = Path(sys.prefix, "pyvenv.cfg")
    if sys.prefix == sys.base_prefix or not config.is_file():
        return False
    wanted = r"(?im)^include-system-site-packages\s*=\s*true"
    return re.search(wanted, config.read_text()) is not None


def _fits(torch: Path) -> bool:
    headers = torch / "include/torch/csrc/stable/library.h"
    version = torch / "version.py"
    if not (headers.is_file() and version.is_file()):
        return False
    found = re.search(r"__version__ = '(\d+)\.(\d+)", version.read_text())
    return found is not None and (int(found[1]), int(found[2])) >= OLDEST
