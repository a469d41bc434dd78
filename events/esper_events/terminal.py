"""What is written to a person's terminal, or to whoever reads in its place."""

from __future__ import annotations

import os
from typing import IO


def printable(text: str) -> str:
    """One line without what could steer a terminal: names and paths are data from elsewhere."""
    return "".join(c if c.isprintable() else " " for c in text)


def silence(stream: IO[str]) -> None:
    """Let what is still to be written, the interpreter's last flush too, go nowhere: the stream's
    reader has left, or there is no room."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
