"""The Merkle tree of RFC 6962: one hash that commits to every event, in order, and what can be
shown of it without the events.

Construction and proofs are those of RFC 9162, section 2.1 (the same tree, with the checks written
out). A leaf is the bytes of one event; every hash is a SHA-256 of 32 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from esper_events.errors import ProofError

EMPTY_ROOT = hashlib.sha256(b"").digest()
"""Root of the tree without leaves."""


class MerkleTree:
    """A tree that grows at its end; it keeps only the roots of its full subtrees."""

    __slots__ = ("_peaks", "size")

    def __init__(self) -> None:
        self.size = 0
        # Roots of the full subtrees, largest first; their sizes are the set bits of ``size``.
        self._peaks: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Add the bytes of one event."""
        self.append_hash(leaf_hash(leaf))

    def append_hash(self, node: bytes) -> None:
        """Add a leaf of which the hash is known."""
        size = self.size
        while size & 1:
            node = _parent(self._peaks.pop(), node)
            size >>= 1
        self._peaks.append(node)
        self.size += 1

    def extend(self, leaves: Sequence[bytes]) -> None:
        """Add the bytes of several events."""
        self.extend_hashes(leaf_hashes(leaves))

    def extend_hashes(self, nodes: Sequence[bytes]) -> None:
        """Add leaves of which the hashes are known."""
        if len(nodes) == 1:
            self.append_hash(nodes[0])
            return
        sha256 = hashlib.sha256
        level, size = list(nodes), self.size
        self.size += len(level)
        # A level at a time: what stands alone at its end is the root of a full subtree.
        alone = []
        while level:
            if size & 1:
                level.insert(0, self._peaks.pop())
            if len(level) & 1:
                alone.append(level.pop())
            pairs = iter(level)
            level = [
                sha256(b"\x01" + left + right).digest()
                for left, right in zip(pairs, pairs, strict=True)
            ]
            size >>= 1
        self._peaks += reversed(alone)

    def root(self) -> bytes:
        """The root over all leaves so far (32 bytes)."""
        if not self._peaks:
            return EMPTY_ROOT
        node = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            node = _parent(peak, node)
        return node


def leaf_hash(leaf: bytes) -> bytes:
    """``SHA-256(0x00 || leaf)``."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def leaf_hashes(leaves: Sequence[bytes]) -> list[bytes]:
    """`leaf_hash` of each."""
    sha256 = hashlib.sha256
    return [sha256(b"\x00" + leaf).digest() for leaf in leaves]


def inclusion_path(hashes: Sequence[bytes], index: int) -> list[bytes]:
    """``PATH(index, hashes)`` of section 2.1.3.1, from the leaf's sibling up.

    Args:
        hashes: the leaf hashes of the whole tree.
        index: which of them, from 0.

    Raises:
        ProofError: there is no leaf ``index``.
    """
    start, end = 0, len(hashes)
    if not 0 <= index < end:
        raise ProofError(f"got leaf {index}, wanted one of the tree's {end}, from 0")
    path = []
    while end - start > 1:
        middle = _middle(start, end)
        if index < middle:
            path.append(_root(hashes[middle:end]))
            end = middle
        else:
            path.append(_root(hashes[start:middle]))
            start = middle
    return path[::-1]


def consistency_path(hashes: Sequence[bytes], old: int) -> list[bytes]:
    """``PROOF(old, hashes)`` of section 2.1.4.1; empty where ``old`` is the whole tree.

    Args:
        hashes: the leaf hashes of the tree as it is now.
        old: how many of them it had before, at least 1.

    Raises:
        ProofError: the tree never had that many.
    """
    start, end = 0, len(hashes)
    if not 1 <= old <= end:
        raise ProofError(f"got an older tree of {old} leaves, wanted 1 to {end}")
    path = []
    while old != end:
        middle = _middle(start, end)
        if old <= middle:
            path.append(_root(hashes[middle:end]))
            end = middle
        else:
            path.append(_root(hashes[start:middle]))
            start = middle
    if start:  # else the last subtree is the older tree itself, whose root the verifier has
        path.append(_root(hashes[start:end]))
    return path[::-1]


def included_root(node: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root of the tree of ``size`` leaves in which ``path`` places the leaf hash ``node``.

    Section 2.1.3.2; that the root is the right one is the caller's to compare.

    Raises:
        ProofError: no such leaf, or the path is not as long as the way to the root.
    """
    if not 0 <= index < size:
        raise ProofError(f"got leaf {index}, wanted one of the tree's {size}, from 0")
    _check_length(path, _way(index, size - 1), f"leaf {index} of {size}")
    last = size - 1
    for other in path:
        if index & 1 or index == last:
            node = _parent(other, node)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            node = _parent(node, other)
        index, last = index >> 1, last >> 1
    return node


def consistent_roots(
    old: int, old_root: bytes, size: int, path: Sequence[bytes]
) -> tuple[bytes, bytes]:
    """The two roots, of ``old`` and of ``size`` leaves, that ``path`` leads to (section 2.1.4.2).

    The trees are consistent where the first is ``old_root`` and the second that of the newer tree;
    that is the caller's to compare.

    Raises:
        ProofError: ``old`` is not 1 to ``size``, or the path has not the length that they ask for.
    """
    if not 1 <= old <= size:
        raise ProofError(f"got an older tree of {old} leaves, wanted 1 to {size}")
    index, last = old - 1, size - 1
    while index & 1:
        index, last = index >> 1, last >> 1
    # Where the older tree is a full subtree of the newer, its root is the first node, else the
    # path begins with it.
    given = index == 0 or old == size
    wanted = 0 if old == size else _way(index, last) + (not given)
    _check_length(path, wanted, f"{old} in {size} leaves")
    older = newer = old_root if given else path[0]
    for other in path if given else path[1:]:
        if index & 1 or index == last:
            older, newer = _parent(other, older), _parent(other, newer)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            newer = _parent(newer, other)
        index, last = index >> 1, last >> 1
    return older, newer


def _check_length(path: Sequence[bytes], wanted: int, what: str) -> None:
    if len(path) != wanted:
        raise ProofError(f"got a path of {len(path)} hashes, wanted {wanted} for {what}")


def _way(index: int, last: int) -> int:
    """Steps from node ``index`` of a level up to the root, where ``last`` ends that level.

    Up to where the node's way joins the last one's there is a sibling at every level, above only
    where the way goes to the right.
    """
    joined = (index ^ last).bit_length()
    return joined + (index >> joined).bit_count()


def _middle(start: int, end: int) -> int:
    """Where the RFC splits leaves ``start`` to ``end``: behind the largest smaller power of two."""
    return start + (1 << (end - start - 1).bit_length() - 1)


def _root(hashes: Sequence[bytes]) -> bytes:
    tree = MerkleTree()
    tree.extend_hashes(hashes)
    return tree.root()


def _parent(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
