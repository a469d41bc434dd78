"""Takes files out of a Debian package without installing it, and without root."""

from __future__ import annotations

import subprocess
from pathlib import Path

SECONDS = 300


class FetchError(Exception):
    """One way to the files that leads nowhere."""


def unpack(package: str, place: Path) -> None:
    """Download ``package`` with ``apt-get`` and unpack it in ``place``; where the system has no
    lists of packages, or old ones, with lists of its own.

    Raises:
        FetchError: there is no such command or package, or it could not be had.
    """
    try:
        _run(place, "apt-get", "-q", "download", package)
    except FetchError:
        own = ("-o", f"Dir::State::Lists={place}/lists", "-o", f"Dir::Cache={place}/cache")
        (place / "lists" / "partial").mkdir(parents=True)
        _run(place, "apt-get", "-q", *own, "update")
        _run(place, "apt-get", "-q", *own, "download", package)
    for found in place.glob(f"{package}_*.deb"):
        _run(place, "dpkg-deb", "-x", str(found), ".")


def _run(place: Path, *command: str) -> None:
    try:
        subprocess.run(command, cwd=place, check=True, capture_output=True, timeout=SECONDS)
    except subprocess.CalledProcessError as error:
        told = error.stderr.decode(errors="replace").strip()
        raise FetchError(f"{command[0]}: {told}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"{command[0]}: {error}") from None
