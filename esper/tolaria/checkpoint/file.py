"""One checkpoint on disk: safetensors, with everything that is no tensor as JSON beside them.

A file appears whole or not at all, and equal contents give equal bytes, so that its SHA-256 is
its name in the run's log.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from esper.log.objects import CHECKPOINTS, checkpoint_name
from esper.tolaria.checkpoint.values import ValueRefusedError, unpack
from esper_events.files import sync_directory

FORMAT = 3
DIRECTORY = CHECKPOINTS
SUFFIX = ".safetensors"
_DRAFTS = "drafts"
"""Where a file is written before it is whole; whoever was killed while writing left it there."""
_KEY = "esper.checkpoint"
"""The one entry of the metadata: safetensors writes several in no order that one could rely on."""


class CheckpointError(Exception):
    """A file that holds no checkpoint, or one that does not fit what is to go on from it."""


def path_of(directory: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies."""
    return directory / checkpoint_name(step)


def write(directory: Path, step: int, packed: Any, tensors: dict[str, Tensor]) -> str:
    """Write a checkpoint durably; the SHA-256 in hex of its bytes.

    Raises:
        OSError, SafetensorError: it could not be written; what was there before is untouched.
    """
    path = path_of(directory, step)
    draft = directory / _DRAFTS / path.name
    draft.parent.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.encode({"format": FORMAT, "state": packed}, order="sorted").decode()
    try:
        draft.unlink(missing_ok=True)
        draft.touch()
        permissions = draft.stat().st_mode  # Those of the user's files; safetensors has its own.
        _save(tensors, draft, {_KEY: text})
        draft.chmod(permissions)
        digest = _synced_digest(draft)
        draft.replace(path)
    finally:
        _discard_drafts(directory)
    sync_directory(directory)
    return digest


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        # It tells what the system said in words alone.
        told = re.search(r"os error (\d+)", str(error))
        if told is None:
            raise
        number = int(told[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def read(path: Path, digest: str) -> Any:
    """The value that a checkpoint with this ``digest`` holds.

    Raises:
        CheckpointError: there is none; the message, which begins with "it", says why.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise CheckpointError("it is not there") from None
    except OSError as error:
        raise CheckpointError(f"it cannot be read ({error.strerror})") from error
    if found != digest:
        raise CheckpointError(
            f"it is not the file that was written (its SHA-256 is {found[:12]}, the log says "
            f"{digest[:12]})"
        )
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        described = msgspec.json.decode(metadata[_KEY])
        if described["format"] != FORMAT:
            raise CheckpointError(f"it has format {described['format']}, wanted {FORMAT}")
        return unpack(described["state"], tensors)
    except (SafetensorError, msgspec.MsgspecError, KeyError, TypeError, ValueRefusedError) as error:
        raise CheckpointError(f"it holds no checkpoint ({error})") from error


def prune(directory: Path, keep: int, besides: Collection[int] = ()) -> None:
    """Remove all but the ``keep`` newest checkpoints and those of some steps ``besides``, and what
    a killed process began to write."""
    wanted = {path_of(directory, step) for step in besides}
    for path in sorted(directory.glob(f"*{SUFFIX}"))[:-keep]:
        if path not in wanted:
            path.unlink(missing_ok=True)
    _discard_drafts(directory)


def keep_only(directory: Path, steps: Collection[int]) -> None:
    """Remove the checkpoints of other steps than these."""
    wanted = {path_of(directory, step) for step in steps}
    for path in directory.glob(f"*{SUFFIX}"):
        if path not in wanted:
            path.unlink(missing_ok=True)


def _discard_drafts(directory: Path) -> None:
    """Remove them all: safetensors writes beside a file, under a name of its own, before it."""
    shutil.rmtree(directory / _DRAFTS, ignore_errors=True)


def _synced_digest(path: Path) -> str:
    with path.open("r+b") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest
