"""Text that has one spelling: lines, decimal numbers and base64, read strictly."""

from __future__ import annotations

import base64
import re

from esper_events.errors import TextError

LAST_NUMBER = (1 << 63) - 1

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")
_SHOWN = 40


def split(data: bytes) -> list[str]:
    """The lines of ``data``, each of which ends in a newline and holds printable characters alone.

    Raises:
        TextError: ``data`` is anything else.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"byte {error.start} is not of UTF-8 text") from error
    if not text.endswith("\n"):
        raise TextError("the text is cut off: its last line does not end in a newline")
    lines = text[:-1].split("\n")
    for place, line in enumerate(lines, 1):
        if not line.isprintable():
            odd = next(c for c in line if not c.isprintable())
            raise TextError(
                f"got {odd!r} in line {place}, wanted what can be printed, and \\n alone"
            )
    return lines


def number(text: str, name: str) -> int:
    """The number from 0 to `LAST_NUMBER` that ``text`` is the decimal of.

    Raises:
        TextError: ``text`` is none, or begins with a zero too many.
    """
    if not _DECIMAL.fullmatch(text) or int(text) > LAST_NUMBER:
        raise TextError(f"got {name} {shown(text)}, wanted a decimal number, at most {LAST_NUMBER}")
    return int(text)


def binary(text: str, name: str, length: int | None = None) -> bytes:
    """The bytes (``length`` of them) that ``text`` is the base64 of (RFC 4648, section 4).

    Raises:
        TextError: ``text`` is no base64, or not the one spelling of its bytes, or of others in
            number.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise TextError(f"got {name} {shown(text)}, wanted base64: {error}") from error
    # The bits behind the last byte must be zero.
    if base64.b64encode(data).decode() != text:
        raise TextError(f"got {name} {shown(text)}, wanted base64 in its one canonical spelling")
    if length is not None and len(data) != length:
        raise TextError(f"got {name} of {len(data)} bytes, wanted {length}")
    return data


def shown(text: str) -> str:
    """``text`` for an error: quoted, and not too long."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
