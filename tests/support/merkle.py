"""The Merkle tree as RFC 9162 defines it, word for word, without regard for speed."""

from __future__ import annotations

import hashlib

LEAVES = (
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
)
"""Of the reference tests of Certificate Transparency."""


def defined_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + defined_root(leaves[:k]) + defined_root(leaves[k:])).digest()


def node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def split(count: int) -> int:
    k = 1
    while k * 2 < count:
        k *= 2
    return k


def defined_path(index: int, leaves: list[bytes]) -> list[bytes]:
    """RFC 9162, section 2.1.3.1, word for word."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if index < k:
        return [*defined_path(index, leaves[:k]), defined_root(leaves[k:])]
    return [*defined_path(index - k, leaves[k:]), defined_root(leaves[:k])]


def defined_proof(old: int, leaves: list[bytes], known: bool = True) -> list[bytes]:
    """RFC 9162, section 2.1.4.1, word for word."""
    if old == len(leaves):
        return [] if known else [defined_root(leaves)]
    k = split(len(leaves))
    if old <= k:
        return [*defined_proof(old, leaves[:k], known), defined_root(leaves[k:])]
    return [*defined_proof(old - k, leaves[k:], False), defined_root(leaves[:k])]
