"""A disk that is full, for real, without any right that a test may not have.

Where the system lets a user have a mount namespace, the disk is a small tmpfs in one: whatever is
run sees ENOSPC. Elsewhere it is a limit on the size of files (EFBIG), which every system has.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from functools import cache
from pathlib import Path

_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


@cache
def has_namespaces() -> bool:
    """Whether a tmpfs can be mounted here by anybody."""
    probe = "d=$(mktemp -d) && mount -t tmpfs -o size=64k small $d && umount $d; rmdir $d"
    try:
        done = subprocess.run([*_NAMESPACE, "sh", "-ec", probe], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0


def on_small_disk(
    place: Path,
    environment: dict[str, str],
    *,
    disk: int,
    largest: int,
    full: list[str],
    then: list[list[str]],
) -> list[subprocess.CompletedProcess[str]]:
    """Run ``full`` with ``place`` on a disk of so many KiB (where that cannot be had, with no file
    of more than ``largest`` KiB), then, with room again, each of the commands ``then``.

    The working directory is that which holds ``place``.
    """
    commands = [full, *then]
    lines = ["set -u"]
    if has_namespaces():
        lines.append(f"mount -t tmpfs -o size={disk}k small {shlex.quote(str(place))}")
        lines.append(_told(full, 0))
        lines.append(f"mount -o remount,size=512m {shlex.quote(str(place))}")
    else:
        lines.append(f"( ulimit -f {2 * largest}; {_told(full, 0)} )")  # In halves of a KiB.
    lines += [_told(command, number) for number, command in enumerate(then, 1)]
    namespace = _NAMESPACE if has_namespaces() else ()
    subprocess.run(
        [*namespace, "sh", "-c", "\n".join(lines)],
        cwd=place.parent,
        env=environment | {"TOLD": str(place.parent)},
        check=True,
        timeout=300,
    )
    return [_result(place.parent, command, number) for number, command in enumerate(commands)]


def _told(command: list[str], number: int) -> str:
    """The command as a line of the shell that keeps what it says."""
    line = shlex.join(os.fspath(word) for word in command)
    return f'{line} >"$TOLD/out-{number}" 2>"$TOLD/err-{number}"; echo $? >"$TOLD/code-{number}"'


def _result(directory: Path, command: list[str], number: int) -> subprocess.CompletedProcess[str]:
    told = [(directory / f"{name}-{number}").read_text() for name in ("code", "out", "err")]
    return subprocess.CompletedProcess(command, int(told[0]), told[1], told[2])
