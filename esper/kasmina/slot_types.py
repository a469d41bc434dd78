"""The kinds of module that can carry a slot, torch's own and those that a user declares."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize


@dataclass(frozen=True)
class SlotType:
    """How a kind of module lays its activations out.

    ``feature_axis`` counts with the batch dimension, from the end where it is negative;
    ``dimensions`` is the number of dimensions of a batched activation, where only one is.
    """

    feature_axis: int
    dimensions: int | None = None


_TYPES: dict[type[nn.Module], SlotType] = {
    nn.Linear: SlotType(-1),
    nn.LayerNorm: SlotType(-1),
    nn.RMSNorm: SlotType(-1),
    nn.Embedding: SlotType(-1),
    nn.EmbeddingBag: SlotType(-1, dimensions=2),
    nn.MultiheadAttention: SlotType(-1, dimensions=3),
    nn.RNN: SlotType(-1, dimensions=3),
    nn.GRU: SlotType(-1, dimensions=3),
    nn.LSTM: SlotType(-1, dimensions=3),
    nn.RNNCell: SlotType(-1, dimensions=2),
    nn.GRUCell: SlotType(-1, dimensions=2),
    nn.LSTMCell: SlotType(-1, dimensions=2),
    nn.Conv1d: SlotType(1, dimensions=3),
    nn.Conv2d: SlotType(1, dimensions=4),
    nn.BatchNorm1d: SlotType(1),
    nn.BatchNorm2d: SlotType(1),
}
"""By exact type: a subclass may keep its features elsewhere."""


def register_slot_type(kind: type[nn.Module], feature_axis: int) -> None:
    """Declare that seeds can live on modules of type ``kind``.

    The activation of such a module is what it returns, or the first of a tuple; its input the
    first argument of ``forward``. Both are floating-point tensors with the batch on axis 0, or on
    axis 1 in a module whose attribute ``batch_first`` is False. The declaration counts for ``kind``
    itself and not for its subclasses, lasts as long as the process, and is made before
    ``esper.Growth``; who re-runs or resumes a run makes it again.

    Args:
        kind: a subclass of ``nn.Module``.
        feature_axis: the axis of the features in input and output, the batch dimension counted;
            negative from the end.

    Raises:
        TypeError: ``kind`` is no type of module, or ``feature_axis`` no integer.
        ValueError: ``feature_axis`` is 0, which is the batch, or ``kind`` is known with another.
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError(f"got {kind!r}, wanted a subclass of torch.nn.Module (the type itself)")
    if isinstance(feature_axis, bool) or not isinstance(feature_axis, int):
        raise TypeError(f"got feature_axis={feature_axis!r}, wanted an integer")
    if feature_axis == 0:
        raise ValueError(
            "got feature_axis=0, which is the batch: wanted the axis of the features, counted with "
            "the batch dimension or, negative, from the end"
        )
    known = _TYPES.get(kind)
    if known is not None and known.feature_axis != feature_axis:
        raise ValueError(
            f"{kind.__name__} has its features on axis {known.feature_axis} already, got "
            f"{feature_axis}; declare a subclass where another layout is meant"
        )
    _TYPES.setdefault(kind, SlotType(feature_axis))


def slot_type(module: nn.Module) -> SlotType | None:
    """The slot type of ``module``, seen through weight and spectral norm; None for all others."""
    kind = parametrize.type_before_parametrizations(module)
    return _TYPES.get(kind) or _of_transformers(kind)


def _of_transformers(kind: type[nn.Module]) -> SlotType | None:
    """The layers that Hugging Face's models have in place of torch's, known by name: the package
    is not imported for it."""
    if not kind.__module__.startswith("transformers."):
        return None
    last = kind.__name__ == "Conv1D" or kind.__name__.endswith(("RMSNorm", "T5LayerNorm"))
    return SlotType(-1) if last else None


def why_no_slot(module: nn.Module) -> str:
    """The reason for a module of a type that carries no slots, and what to do about it."""
    kind = parametrize.type_before_parametrizations(module)
    reason = f"no slots on {kind.__name__}"
    if kind.__module__.startswith("torch."):
        return reason
    known = next((base for base in kind.__mro__ if base in _TYPES), None)
    if known is not None:
        axis = _TYPES[known].feature_axis
        return (
            f"{reason}, which may lay out its features in another way than {known.__name__}; if "
            f"not: esper.register_slot_type({kind.__name__}, feature_axis={axis})"
        )
    if next(module.parameters(), None) is not None:
        call = f"esper.register_slot_type({kind.__name__}, feature_axis=...)"
        return f"{reason} unless you tell where its features are: {call}"
    return reason


def known_types() -> str:
    """The names of all types that can carry a slot."""
    return ", ".join(kind.__name__ for kind in _TYPES)
