from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.kasmina._lattice import TelemetryRing


@given(
    capacity=st.integers(1, 6),
    width=st.integers(1, 4),
    gaps=st.lists(st.integers(1, 3), max_size=20),
)
def test_it_keeps_the_last_records_in_order(capacity: int, width: int, gaps: list[int]) -> None:
    ring = TelemetryRing(capacity, width)
    kept: deque[tuple[int, list[float]]] = deque(maxlen=capacity)
    step = 0
    for gap in gaps:
        step += gap
        record = np.arange(width) + step * 0.5
        ring.push(step, record)
        kept.append((step, record.tolist()))
    assert ring.steps() == [step for step, _ in kept]
    assert np.frombuffer(ring.records()).reshape(-1, width).tolist() == [r for _, r in kept]
    assert (len(ring), ring.pushed) == (len(kept), len(gaps))
    assert (ring.capacity, ring.width) == (capacity, width)


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    ring = TelemetryRing(2, 3)
    ring.push(5, np.zeros(3))
    with pytest.raises(ValueError, match="got step 5, wanted one above the last, 5"):
        ring.push(5, np.zeros(3))
    with pytest.raises(ValueError, match="wanted 3 figures in float64"):
        ring.push(6, np.zeros(2))
    with pytest.raises(ValueError, match="format 'f'"):
        ring.push(6, np.zeros(6, dtype=np.float32))
    with pytest.raises((BufferError, ValueError)):
        ring.push(6, np.zeros((3, 2))[:, 0])
    with pytest.raises(TypeError):
        ring.push(6, [0.0, 0.0, 0.0])
    assert ring.steps() == [5]
    for sizes in ((0, 1), (1, 0), (-1, 3)):
        with pytest.raises(ValueError, match="wanted at least 1"):
            TelemetryRing(*sizes)
