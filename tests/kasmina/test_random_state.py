"""The state of every generator: taken, put back to the bit, and carried in plain values."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.kasmina.random_state import RandomState

Draws = tuple[object, ...]


@pytest.fixture(autouse=True)
def _generator() -> Iterator[None]:
    """NumPy's own generator is another one only within a test."""
    own = np.random.get_bit_generator()
    yield
    np.random.set_bit_generator(own)


def draw() -> Draws:
    """A few numbers of each kind, of which one kind keeps a second number for later."""
    return (
        torch.rand(2).tolist(),
        random.random(),
        random.gauss(),
        np.random.standard_normal(),
        np.random.randn(700).tolist(),
        np.random.randint(1 << 30),
    )


@given(seed=st.integers(0, 2**32 - 1), odd=st.booleans(), far=st.integers(0, 700))
def test_what_is_drawn_after_a_restore_is_what_was_drawn_before(
    seed: int, odd: bool, far: int
) -> None:
    np.random.seed(seed)
    np.random.randint(1 << 30, size=far)
    if odd:
        np.random.randn(), random.gauss()
    state = RandomState()
    values = RandomState().values()
    first = draw()
    state.restore()
    assert draw() == first
    RandomState.of(values).restore()
    assert draw() == first


def test_the_state_is_that_of_numpy_to_the_last_word() -> None:
    np.random.seed(3)
    np.random.randn()
    name, key, *rest = np.random.get_state()
    values = RandomState().values()["numpy"]
    state = values["state"]
    assert (values["bit_generator"], state["key"]) == (name, key.tolist())
    assert [state["pos"], values["has_gauss"], values["gauss"]] == rest


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.SFC64])
def test_another_generator_in_numpys_place_is_kept_too(
    kind: type[np.random.BitGenerator],
) -> None:
    np.random.set_bit_generator(kind(7))
    state, first = RandomState(), draw()
    state.restore()
    assert draw() == first
    assert type(np.random.get_bit_generator()) is kind
