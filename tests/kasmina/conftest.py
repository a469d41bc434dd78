"""Fixtures of the execution layer's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from esper.kasmina import bodies


@pytest.fixture
def quiet() -> Iterator[None]:
    """One thread, and the same numbers in every run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many seeds each call took."""
    taken: list[int] = []
    honest = bodies.residual_graft

    def counted(h: Tensor, x: Tensor, down: Tensor, *rest: Any, **more: Any) -> Tensor:
        taken.append(len(down))
        return honest(h, x, down, *rest, **more)

    monkeypatch.setattr(bodies, "residual_graft", counted)
    return taken
