"""Where a module has its activation: the first thing that it is given, and the first it returns.

Whatever else a module takes or returns (the masks and weights of attention, the state of a
recurrent layer) passes by untouched.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn


def input_name(module: nn.Module) -> str | None:
    """The name of the first argument of ``module``'s forward; None where it has no name."""
    forward = module.forward
    method = getattr(forward, "__func__", None)
    return _first_name(forward) if method is None else _second_name(method)


def _first_name(function: Callable[..., Any], skipped: int = 0) -> str | None:
    arguments = inspect.signature(function).parameters.values()
    first = next(itertools.islice(arguments, skipped, None), None)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return first.name if first is not None and first.kind in named else None


@functools.lru_cache(maxsize=1024)
def _second_name(method: Callable[..., Any]) -> str | None:
    """That of the argument after ``self``; asked at every shadow pass, so it is remembered."""
    return _first_name(method, 1)


def given(args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str | None) -> Any:
    """The first argument of a call, passed by position or by its ``name``; None without one."""
    return args[0] if args else kwargs.get(name or "")


def activation(output: Any) -> Any:
    """The activation in what a module returned: ``output`` itself, or the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


def with_activation(output: Any, h: Tensor) -> Any:
    """``output`` with ``h`` in place of its activation."""
    return (h, *output[1:]) if isinstance(output, tuple) else h


def turned(x: Tensor, batch_axis: int) -> Tensor:
    """``x`` with the batch first where it stands on ``batch_axis`` (0 or 1), and back again."""
    return x.transpose(0, 1) if batch_axis else x
