from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.tolaria.heldout import MINIMUM, HeldOutError, split_held_out


@given(st.integers(MINIMUM, 200))
def test_each_batch_goes_to_one_gate_alone(count: int) -> None:
    parts = split_held_out(range(count), None, "probe")
    dealt = [*parts.watch, *parts.shadow, *parts.confirm]
    assert sorted(dealt) == list(range(count))
    assert max(map(len, (parts.watch, parts.shadow, parts.confirm))) <= count // 3 + 1
    assert min(map(len, (parts.watch, parts.shadow, parts.confirm))) >= 2


@given(st.integers(4, 100), st.integers(2, 100))
def test_confirmation_batches_of_ones_own_are_kept_apart(probe: int, confirm: int) -> None:
    kept = tuple(range(1000, 1000 + confirm))
    parts = split_held_out(range(probe), kept, "probe")
    assert parts.confirm == kept
    assert sorted([*parts.watch, *parts.shadow]) == list(range(probe))
    assert min(len(parts.watch), len(parts.shadow)) >= 2


@pytest.mark.parametrize(
    ("probe", "confirm", "said"),
    [
        (5, None, "got 5 probe batches, wanted at least 6 probe batches"),
        (0, None, "got 0 probe"),
        (3, 2, "got 3 probe and 2 confirm batches, wanted at least 4 probe batches and 2 confirm"),
        (4, 1, "got 4 probe and 1 confirm"),
        (4, 0, "got 4 probe and 0 confirm"),
    ],
)
def test_too_few_batches_are_refused(probe: int, confirm: int | None, said: str) -> None:
    with pytest.raises(HeldOutError, match=said):
        split_held_out(range(probe), None if confirm is None else range(confirm), "probe")
