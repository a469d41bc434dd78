"""Fixtures of the tests of what leaves Esper."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def quiet() -> Iterator[None]:
    """One thread, and the same numbers in every run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
