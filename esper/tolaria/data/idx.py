"""The IDX format of the MNIST family: a header of big-endian integers, then bytes.

Bytes 0-1 are zero, byte 2 is the type (0x08: unsigned bytes, the only one read here), byte 3 the
number of dimensions; a 32-bit size for each follows, and then exactly as many bytes as they say.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MAX_DIMENSIONS = 4
MAX_BYTES = 64 * 1024 * 1024
"""More than the 47 MB of 60,000 images of 28 x 28."""

_UNSIGNED_BYTES = 0x08


class IdxError(ValueError):
    """Bytes that are no IDX file. The message is one line."""


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in a gzipped IDX file.

    Raises:
        IdxError: not gzip, damaged, too large, or not IDX.
        OSError: the file cannot be read.
    """
    return parse_idx(unzipped(path))


def unzipped(path: Path) -> bytes:
    """The bytes in a gzipped file, at most ``MAX_BYTES`` (a bomb is not unpacked further).

    Raises:
        IdxError: not gzip, damaged, or too large.
        OSError: the file cannot be read.
    """
    try:
        with gzip.open(path) as file:
            content = file.read(MAX_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise IdxError(f"not a whole gzip file ({error})") from None
    if len(content) > MAX_BYTES:
        raise IdxError(f"got more than {MAX_BYTES} bytes, wanted at most as many")
    return content


def parse_idx(content: bytes) -> NDArray[np.uint8]:
    """The array in the bytes of an IDX file; raises ``IdxError``."""
    if len(content) < 4:
        raise IdxError(f"got {len(content)} bytes, wanted a header of at least 4")
    zero, kind, dimensions = struct.unpack(">HBB", content[:4])
    if zero != 0 or kind != _UNSIGNED_BYTES or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise IdxError(
            f"got magic number 0x{content[:4].hex()}, wanted 0x000008nn with nn from 1 to "
            f"{MAX_DIMENSIONS}"
        )
    begin = 4 + 4 * dimensions
    if len(content) < begin:
        raise IdxError(f"got {len(content)} bytes, wanted a header of {begin}")
    shape = struct.unpack(f">{dimensions}I", content[4:begin])
    if len(content) - begin != math.prod(shape):
        raise IdxError(
            f"got {len(content) - begin} bytes of data, wanted {math.prod(shape)} for the sizes "
            f"{shape}"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=begin).reshape(shape)
