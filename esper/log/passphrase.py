"""Where the pass phrase of an encrypted key comes from: a file, the environment, or a person."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

from esper_events.errors import KeyFileError
from esper_events.files import read_private

FILE_VARIABLE = "ESPER_PASSPHRASE_FILE"
VARIABLE = "ESPER_PASSPHRASE"
MAX_BYTES = 1024


def passphrase(path: Path) -> bytes:
    """The pass phrase of the key at ``path``.

    It is the first line of the file that ``$ESPER_PASSPHRASE_FILE`` names, else what
    ``$ESPER_PASSPHRASE`` holds, else what is typed at the terminal. Raises ``KeyFileError`` where
    there is none of them, and for a file that others can read.
    """
    given = _given()
    return _ask(f"Pass phrase for {path}: ", path) if given is None else given


def new_passphrase(path: Path) -> bytes:
    """A pass phrase for a key that is to be made at ``path``; typed twice where it is typed.

    Raises ``KeyFileError`` as `passphrase` does, and for one that is empty or typed otherwise the
    second time.
    """
    chosen = _given()
    if chosen is None:
        chosen = _ask(f"New pass phrase for {path}: ", path)
        if _ask("The same again: ", path) != chosen:
            raise KeyFileError(f"{path}: the two pass phrases differ; nothing was written")
    if not chosen:
        raise KeyFileError(f"{path}: got an empty pass phrase; nothing was written")
    return chosen


def _given() -> bytes | None:
    file = os.environ.get(FILE_VARIABLE)
    if file:
        return read_private(Path(file), MAX_BYTES).partition(b"\n")[0].removesuffix(b"\r")
    text = os.environ.get(VARIABLE)
    return None if text is None else os.fsencode(text)


def _ask(prompt: str, path: Path) -> bytes:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError as error:
        raise KeyFileError(
            f"{path} is encrypted, and there is no terminal to ask for its pass phrase: set "
            f"{FILE_VARIABLE} or {VARIABLE}"
        ) from error
    try:
        return os.fsencode(getpass.getpass(prompt))
    except EOFError as error:
        raise KeyFileError(f"{path}: no pass phrase was typed") from error
