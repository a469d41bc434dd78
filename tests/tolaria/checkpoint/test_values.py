"""What a checkpoint can hold comes back as it was; what it cannot is refused with its place."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from esper.tolaria.checkpoint.values import MAX_DEPTH, Packer, ValueRefusedError, unpack

KEYS = st.one_of(st.text(), st.integers(), st.booleans())
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(codec="utf-8"))
)
TENSORS = st.one_of(
    st.lists(st.floats(width=32)).map(lambda v: torch.tensor(v, dtype=torch.float32)),
    st.lists(st.integers(-(2**63), 2**63 - 1)).map(lambda v: torch.tensor(v, dtype=torch.int64)),
    st.booleans().map(torch.tensor),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(SCALARS, TENSORS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(st.text(), inner, max_size=3).map(OrderedDict),
        st.dictionaries(st.text(), st.integers(), max_size=3).map(Counter),
    ),
    max_leaves=12,
)


def through_json(value: object) -> Any:
    packer = Packer()
    text = msgspec.json.encode(packer.pack(value, "value"), order="sorted")
    return unpack(msgspec.json.decode(text), packer.tensors)


def alike(one: Any, two: Any) -> bool:
    """Equal in type, order and bits, NaN included."""
    if type(one) is not type(two):
        return False
    if isinstance(one, Tensor):
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one, two)]
        return one.dtype == two.dtype and one.shape == two.shape and torch.equal(*bits)
    if isinstance(one, float):
        same_sign = math.copysign(1, one) == math.copysign(1, two)
        return (math.isnan(one) and math.isnan(two)) or (one == two and same_sign)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(alike, one, two))
    if isinstance(one, dict):
        return alike(list(map(list, one.items())), list(map(list, two.items())))
    return bool(one == two)


@given(VALUES)
def test_what_is_packed_comes_back_in_every_bit(value: object) -> None:
    assert alike(through_json(value), value)


@given(VALUES)
def test_equal_values_give_equal_bytes(value: object) -> None:
    first, second = Packer(), Packer()
    texts = [msgspec.json.encode(p.pack(value, "v"), order="sorted") for p in (first, second)]
    assert texts[0] == texts[1]
    assert first.tensors.keys() == second.tensors.keys()


def test_a_packed_tensor_is_a_copy_and_named_by_its_place() -> None:
    live = torch.ones(3, 2).t()
    packer = Packer()
    packed = packer.pack({"state": [live]}, "host")
    live.fill_(7.0)
    assert list(packer.tensors) == ["host/state/0"]
    assert torch.equal(unpack(packed, packer.tensors)["state"][0], torch.ones(2, 3))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (object(), r"here is a builtins\.object, wanted tensors"),
        ({"a": [1, {2}]}, r"here/a/1 is a builtins\.set"),
        ({(1, 2): 3}, r"here has the key \(1, 2\), wanted text or a number"),
        ([lambda: 0], r"here/0 is a builtins\.function"),
        ({"k": "\ud800"}, r"here/k is a builtins\.str"),
        (torch.eye(2).to_sparse(), "here is no ordinary dense tensor"),
        (torch.empty(2, device="meta"), "here is no ordinary dense tensor"),
    ],
)
def test_what_is_no_plain_value_is_refused_with_its_place(value: object, told: str) -> None:
    with pytest.raises(ValueRefusedError, match=told):
        Packer().pack(value, "here")


def test_a_value_that_holds_itself_is_refused() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(ValueRefusedError, match=f"nested more than {MAX_DEPTH} deep"):
        Packer().pack(endless, "here")


@pytest.mark.parametrize(
    "packed", [{"tensor": "gone"}, {"what": []}, {}, {"dict": [1]}, {"int": "x"}, {"tuple": 3}]
)
def test_what_no_packer_wrote_is_refused(packed: Any) -> None:
    with pytest.raises(ValueRefusedError, match="not a packed value"):
        unpack(packed, {})
