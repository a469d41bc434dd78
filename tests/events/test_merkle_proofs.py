"""Inclusion and consistency proofs are those of RFC 9162, and nothing else passes for one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_events.errors import ProofError
from esper_events.merkle import (
    MerkleTree,
    consistency_path,
    consistent_roots,
    included_root,
    inclusion_path,
    leaf_hash,
)
from support.merkle import LEAVES, defined_path, defined_proof, defined_root, node

SIZE = 70
NUMBERED = [bytes([number]) for number in range(SIZE)]
HASHES = [leaf_hash(leaf) for leaf in NUMBERED]
ROOTS = [defined_root(NUMBERED[:size]) for size in range(SIZE + 1)]
REFERENCE = [leaf_hash(bytes.fromhex(leaf)) for leaf in LEAVES]


def accepts_inclusion(leaf: bytes, index: int, size: int, path: list[bytes], root: bytes) -> bool:
    """RFC 9162, section 2.1.3.2, step by step."""
    if index >= size:
        return False
    fn, sn, r = index, size - 1, leaf
    for p in path:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            r = node(p, r)
            if not fn & 1:
                while True:
                    fn, sn = fn >> 1, sn >> 1
                    if fn & 1 or fn == 0:
                        break
        else:
            r = node(r, p)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and r == root


def accepts_consistency(
    first: int, first_root: bytes, second: int, second_root: bytes, path: list[bytes]
) -> bool:
    """RFC 9162, section 2.1.4.2, step by step; it is for ``first`` < ``second``."""
    if not path:
        return False
    if first & (first - 1) == 0:
        path = [first_root, *path]
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for c in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = node(c, fr), node(c, sr)
            if not fn & 1:
                while True:
                    fn, sn = fn >> 1, sn >> 1
                    if fn & 1 or fn == 0:
                        break
        else:
            sr = node(sr, c)
        fn, sn = fn >> 1, sn >> 1
    return fr == first_root and sr == second_root and sn == 0


def included(leaf: bytes, index: int, size: int, path: list[bytes], root: bytes) -> bool:
    try:
        return included_root(leaf, index, size, path) == root
    except ProofError:
        return False


def consistent(old: int, old_root: bytes, size: int, root: bytes, path: list[bytes]) -> bool:
    try:
        return consistent_roots(old, old_root, size, path) == (old_root, root)
    except ProofError:
        return False


@pytest.mark.parametrize(
    ("index", "size", "path"),
    [
        (0, 1, []),
        (0, 8, ["96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"]),
        (5, 8, ["bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"]),
        (2, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
        (1, 5, ["6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"]),
    ],
)  # fmt: skip
def test_the_reference_paths(index: int, size: int, path: list[str]) -> None:
    assert [node.hex() for node in inclusion_path(REFERENCE[:size], index)] == path


@pytest.mark.parametrize(
    ("old", "size", "path"),
    [
        (1, 1, []),
        (1, 8, ["96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"]),
        (6, 8, ["0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"]),
        (2, 5, ["5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"]),
    ],
)  # fmt: skip
def test_the_reference_consistency_proofs(old: int, size: int, path: list[str]) -> None:
    assert [node.hex() for node in consistency_path(REFERENCE[:size], old)] == path


def test_every_leaf_of_every_tree_has_the_path_of_the_definition_and_it_leads_to_the_root() -> None:
    for size in range(1, SIZE + 1):
        for index in range(size):
            path = inclusion_path(HASHES[:size], index)
            assert path == defined_path(index, NUMBERED[:size])
            assert included_root(HASHES[index], index, size, path) == ROOTS[size]
            assert accepts_inclusion(HASHES[index], index, size, path, ROOTS[size])


def test_every_pair_of_trees_has_the_proof_of_the_definition_and_it_leads_to_both_roots() -> None:
    for size in range(1, SIZE + 1):
        for old in range(1, size + 1):
            path = consistency_path(HASHES[:size], old)
            assert path == defined_proof(old, NUMBERED[:size])
            roots = (ROOTS[old], ROOTS[size])
            assert consistent_roots(old, ROOTS[old], size, path) == roots
            assert old == size or accepts_consistency(old, ROOTS[old], size, ROOTS[size], path)


PATHS = st.lists(st.sampled_from(HASHES[:3] + ROOTS[1:9]), max_size=6)


@given(st.integers(0, 12), st.integers(0, 12), PATHS, st.data())
def test_what_is_accepted_is_what_the_algorithms_of_the_rfc_accept(
    first: int, size: int, path: list[bytes], data: st.DataObject
) -> None:
    root = data.draw(st.sampled_from([ROOTS[size], ROOTS[1]]))
    leaf = HASHES[first]
    assert included(leaf, first, size, path, root) == accepts_inclusion(
        leaf, first, size, path, root
    )
    if 0 < first < size:
        assert consistent(first, ROOTS[first], size, root, path) == accepts_consistency(
            first, ROOTS[first], size, root, path
        )


Mutation = Callable[[list[bytes], int], list[bytes]]
MUTATIONS: list[Mutation] = [
    lambda path, at: path[:at] + path[at + 1 :],
    lambda path, at: [*path[:at], path[at], *path[at:]],
    lambda path, at: [*path[:at], bytes(32), *path[at:]],
    lambda path, at: [*path, path[at]],
    lambda path, at: [*path[:at], bytes([path[at][0] ^ 1]) + path[at][1:], *path[at + 1 :]],
    lambda path, at: [*path[:at], *path[at:][::-1]] if path[at:] != path[at:][::-1] else [],
    lambda _path, _at: [],
]


@given(st.integers(2, SIZE), st.sampled_from(MUTATIONS), st.data())
def test_a_changed_path_is_refused(size: int, mutate: Mutation, data: st.DataObject) -> None:
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size - 1))
    path = inclusion_path(HASHES[:size], index)
    changed = mutate(path, data.draw(st.integers(0, len(path) - 1)))
    assert not included(HASHES[index], index, size, changed, ROOTS[size])
    path = consistency_path(HASHES[:size], old)
    changed = mutate(path, data.draw(st.integers(0, len(path) - 1)))
    assert not consistent(old, ROOTS[old], size, ROOTS[size], changed)


def test_a_path_proves_one_leaf_at_one_place_of_one_tree() -> None:
    for size, index in ((s, i) for s in range(1, 18) for i in range(s)):
        path = inclusion_path(HASHES[:size], index)
        for other, place in product(range(1, 18), range(17)):
            holds = included(HASHES[place], place, other, path, ROOTS[other])
            assert holds == ((other, place) == (size, index))
            moved = included(HASHES[index], place, size, path, ROOTS[size])
            assert moved == (place == index)


def test_an_inner_node_is_no_leaf() -> None:
    """The one-byte prefixes: the hash of two children is no hash of a leaf of 64 bytes."""
    forged = leaf_hash(HASHES[0] + HASHES[1])
    assert not included(forged, 0, 1, [], ROOTS[2])


@pytest.mark.parametrize(
    ("index", "size", "count", "reason"),
    [
        (7, 7, 3, "got leaf 7, wanted one of the tree's 7, from 0"),
        (-1, 7, 3, "got leaf -1, wanted one of the tree's 7"),
        (0, 0, 0, "got leaf 0, wanted one of the tree's 0"),
        (2, 7, 2, "got a path of 2 hashes, wanted 3 for leaf 2 of 7"),
        (6, 7, 3, "got a path of 3 hashes, wanted 2 for leaf 6 of 7"),
        (2, 7, 64, "got a path of 64 hashes, wanted 3"),
        (0, 2**63 - 1, 62, "got a path of 62 hashes, wanted 63"),
    ],
)
def test_a_refusal_names_what_was_found_and_wanted(
    index: int, size: int, count: int, reason: str
) -> None:
    with pytest.raises(ProofError, match=reason):
        included_root(bytes(32), index, size, [bytes(32)] * count)


@pytest.mark.parametrize(
    ("old", "size", "count", "reason"),
    [
        (0, 7, 0, "got an older tree of 0 leaves, wanted 1 to 7"),
        (8, 7, 0, "got an older tree of 8 leaves, wanted 1 to 7"),
        (7, 7, 1, "got a path of 1 hashes, wanted 0 for 7 in 7"),
        (3, 7, 0, "got a path of 0 hashes, wanted 4 for 3 in 7 leaves"),
        (4, 7, 2, "got a path of 2 hashes, wanted 1 for 4 in 7 leaves"),
    ],
)
def test_a_refused_consistency_proof_says_why(old: int, size: int, count: int, reason: str) -> None:
    with pytest.raises(ProofError, match=reason):
        consistent_roots(old, bytes(32), size, [bytes(32)] * count)


def test_no_proof_is_made_of_what_the_tree_does_not_hold() -> None:
    for index in (-1, 7):
        with pytest.raises(ProofError, match=f"got leaf {index}, wanted one of the tree's 7"):
            inclusion_path(HASHES[:7], index)
    for old in (0, 8):
        with pytest.raises(ProofError, match=f"tree of {old} leaves, wanted 1 to 7"):
            consistency_path(HASHES[:7], old)


@given(st.lists(st.binary(max_size=3), min_size=1, max_size=40), st.data())
def test_a_tree_of_any_leaves_proves_each(leaves: list[bytes], data: st.DataObject) -> None:
    tree, hashes = MerkleTree(), [leaf_hash(leaf) for leaf in leaves]
    for leaf in leaves:
        tree.append(leaf)
    index = data.draw(st.integers(0, len(leaves) - 1))
    path = inclusion_path(hashes, index)
    assert included_root(hashes[index], index, len(leaves), path) == tree.root()
