"""The Merkle tree of RFC 6962, section 2.1: one hash that commits to every event, in order."""

from __future__ import annotations

import hashlib

EMPTY_ROOT = hashlib.sha256(b"").digest()
"""Root of the tree without leaves."""


class MerkleTree:
    """A tree that grows by one leaf at a time; it keeps only the roots of its full subtrees."""

    __slots__ = ("_peaks", "size")

    def __init__(self) -> None:
        self.size = 0
        # Roots of the full subtrees, largest first; their sizes are the set bits of ``size``.
        self._peaks: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Add the bytes of one event (hashed as ``SHA-256(0x00 || leaf)``)."""
        node = hashlib.sha256(b"\x00" + leaf).digest()
        size = self.size
        while size & 1:
            node = _parent(self._peaks.pop(), node)
            size >>= 1
        self._peaks.append(node)
        self.size += 1

    def root(self) -> bytes:
        """The root over all leaves so far (32 bytes)."""
        if not self._peaks:
            return EMPTY_ROOT
        node = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            node = _parent(peak, node)
        return node


def _parent(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
