"""The state of every generator that a model can draw from."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import Any, Self

import torch


class RandomState:
    """The state of torch's generators (CPU and CUDA), Python's and NumPy's global ones, as it is
    now."""

    def __init__(self) -> None:
        self._torch = torch.default_generator.get_state()
        self._cuda = torch.cuda.get_rng_state_all() if cuda_in_use() else None
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")
        self._numpy = None if numpy is None else _listed(numpy.random.get_state(legacy=False))

    def restore(self) -> None:
        """Put every generator back to this state."""
        torch.default_generator.set_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        random.setstate(self._python)
        if self._numpy is not None and "numpy" in sys.modules:
            sys.modules["numpy"].random.set_state(self._numpy)

    @property
    def passed(self) -> bool:
        """Whether torch's generators are not in this state any more."""
        cuda = torch.cuda.get_rng_state_all() if self._cuda is not None else []
        pairs = zip([self._torch, *(self._cuda or [])], [torch.get_rng_state(), *cuda], strict=True)
        return not all(torch.equal(then, now) for then, now in pairs)

    def values(self) -> dict[str, Any]:
        """The state in numbers, text, lists and tensors."""
        version, words, gauss = self._python
        found: dict[str, Any] = {
            "torch": self._torch,
            "python": (version, torch.tensor(words, dtype=torch.int64), gauss),
        }
        if self._cuda is not None:
            found["cuda"] = self._cuda
        if self._numpy is not None:
            found["numpy"] = self._numpy
        return found

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The state that :meth:`values` gave; generators that it does not name are left alone."""
        state = cls.__new__(cls)
        version, words, gauss = values["python"]
        state._torch = values["torch"]
        state._cuda = values.get("cuda")
        state._python = (version, tuple(words.tolist()), gauss)
        state._numpy = values.get("numpy")
        return state


def cuda_in_use() -> bool:
    """Whether any CUDA generator may have been drawn from."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _listed(state: dict[str, Any]) -> dict[str, Any]:
    """NumPy's state with the words of its default generator as a list.

    NumPy takes them back one by one, from a list 30 times as fast as from its own array.
    """
    if state["bit_generator"] == "MT19937":
        state["state"]["key"] = state["state"]["key"].tolist()
    return state
