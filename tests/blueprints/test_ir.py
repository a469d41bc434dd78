"""The blueprint IR: what is well formed, what its bytes are, and that nothing else is read."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.blueprints.ir import (
    MAX_BYTES,
    Activation,
    Add,
    Blueprint,
    BlueprintError,
    Linear,
    Scale,
    Size,
    from_bytes,
)
from esper.blueprints.library import LIBRARY, WIDEN

OUT = Size("out")
ENDING = Linear(0, OUT, init="zero")


@pytest.mark.parametrize("name", LIBRARY)
def test_the_bytes_of_a_blueprint_bring_it_back(name: str) -> None:
    blueprint = LIBRARY[name]
    assert from_bytes(blueprint.canonical()) == blueprint
    assert blueprint.id == hashlib.sha256(blueprint.canonical()).hexdigest()
    assert blueprint.name == name
    assert blueprint.starts_silent


def test_ids_tell_the_blueprints_of_the_library_apart() -> None:
    assert len({blueprint.id for blueprint in LIBRARY.values()}) == len(LIBRARY)


def test_the_canonical_bytes_do_not_drift() -> None:
    blueprint = Blueprint("tiny", "output", (Linear(0, OUT, init="zero"),))
    assert blueprint.canonical() == (
        b'{"name":"tiny","nodes":[{"bias":true,"init":"zero","op":"linear","size":'
        b'{"least":1,"of":"out","over":1,"times":1},"trainable":true,"x":0}],"source":"output"}'
    )


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ((), "length"),
        ((Linear(1, OUT, init="zero"),), "node 0 reads value 1"),
        ((Linear(0, OUT), ENDING), "nothing reads value 1"),
        ((Linear(0, OUT), Linear(1, OUT, init="zero"), Add(1, 3), ENDING), "node 2 reads value 3"),
        ((Linear(0, OUT), Activation(1, "relu")), "last node"),
        ((Linear(0, OUT),), "init 'zero'"),
        ((Linear(0, OUT), Linear(1, OUT, init="zero", trainable=False)), "must be trainable"),
        ((Linear(0, OUT, init="zero", trainable=False),), "never change anything"),
        ((Linear(0, Size("out", times=0), init="zero"),), ">= 1"),
        ((Linear(-1, OUT, init="zero"),), ">= 0"),
        ((Linear(0, OUT, init="ones"),), "Invalid enum value"),  # type: ignore[arg-type]
        ((Scale(0, init="zero"),) * 65, "length"),
    ],
)
def test_a_graph_that_is_not_well_formed_is_refused(nodes: tuple[Linear, ...], reason: str) -> None:
    with pytest.raises(BlueprintError, match=reason):
        Blueprint("bad", "span", nodes)


@pytest.mark.parametrize("name", ["", "Upper", "with space", "a" * 65, "new\nline", "x\n", "é"])
def test_names_are_plain_words(name: str) -> None:
    with pytest.raises(BlueprintError):
        Blueprint(name, "span", (ENDING,))


def test_a_frozen_random_blueprint_is_expressible() -> None:
    frozen = Blueprint("frozen", "output", (Linear(0, OUT, init="normal", trainable=False),))
    assert not frozen.learns
    assert not frozen.starts_silent
    assert from_bytes(frozen.canonical()) == frozen


def test_the_same_blueprint_in_other_bytes_is_refused() -> None:
    good = WIDEN.canonical()
    with pytest.raises(BlueprintError, match="canonical"):
        from_bytes(good.replace(b":", b": ", 1))
    with pytest.raises(BlueprintError, match="canonical"):
        from_bytes(good.replace(b'"bias":true,', b"", 1))
    with pytest.raises(BlueprintError, match="unknown field"):
        from_bytes(good.replace(b'"name"', b'"code":"x","name"', 1))
    with pytest.raises(BlueprintError, match="at most"):
        from_bytes(good + b" " * MAX_BYTES)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_blueprint_or_an_error(data: bytes) -> None:
    try:
        blueprint = from_bytes(data)
    except BlueprintError:
        return
    assert blueprint.canonical() == data


@given(st.data())
def test_damaged_bytes_are_the_same_blueprint_never(data: st.DataObject) -> None:
    good = bytearray(data.draw(st.sampled_from(list(LIBRARY.values()))).canonical())
    before = bytes(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good) - 1))
        good[at] = data.draw(st.integers(0, 255))
    try:
        blueprint = from_bytes(bytes(good))
    except BlueprintError:
        return
    assert blueprint.canonical() == bytes(good)
    assert (blueprint == from_bytes(before)) == (bytes(good) == before)


def test_deep_nesting_is_an_error_like_any_other() -> None:
    with pytest.raises(BlueprintError):
        from_bytes(b'{"name":' + b"[" * 60_000)
