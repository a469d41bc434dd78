"""The canonical digest against the form that its docstring documents, written again here."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from esper.kasmina.digest import model_digest, tensor_bytes, weights_digest
from support.tensors import DTYPES, shapes, tensors

NAMES = st.text("ab.é0", min_size=1, max_size=4)


def length(number: int, width: int) -> bytes:
    return number.to_bytes(width, "big")


def elements(tensor: Tensor) -> bytes:
    """Row-major, one element at a time."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if tensor.is_complex():
        return b"".join(elements(part) for z in tensor.flatten() for part in (z.real, z.imag))
    values = tensor.resolve_neg().flatten().view(whole[tensor.element_size()]).tolist()
    return b"".join(v.to_bytes(tensor.element_size(), "little", signed=True) for v in values)


def documented(entries: dict[str, Tensor]) -> str:
    text = b""
    for name in sorted(entries):
        tensor = entries[name]
        dtype = str(tensor.dtype).split(".")[1]
        for part in (name, dtype, ",".join(map(str, tensor.shape))):
            raw = part.encode("utf-8")
            text += length(len(raw), 4) + raw
        body = elements(tensor)
        text += length(len(body), 8) + body
    return hashlib.sha256(text).hexdigest()


@given(st.data())
def test_any_layout_gives_the_documented_form(data: st.DataObject) -> None:
    drawn = st.dictionaries(NAMES, st.tuples(shapes(), st.sampled_from(DTYPES)), max_size=3)
    entries = {
        name: data.draw(tensors(shape, dtype)) for name, (shape, dtype) in data.draw(drawn).items()
    }
    assert weights_digest(entries) == documented(entries)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(-0.0),
        torch.zeros(0, 3),
        torch.tensor([True, False]),
        torch.arange(5),
        torch.randn(2, 3).half(),
        torch.tensor([float("nan"), float("-inf")], dtype=torch.bfloat16),
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.randn(3, dtype=torch.complex64).conj().imag,
        torch.randn(4, requires_grad=True),
    ],
    ids=["-0", "empty", "bool", "int", "half", "bf16", "conj", "negative view", "learns"],
)
def test_every_kind_of_tensor_has_its_form(tensor: Tensor) -> None:
    assert weights_digest({"w": tensor}) == documented({"w": tensor.detach()})


def test_order_does_not_matter_and_names_dtypes_and_shapes_do() -> None:
    a, b = torch.zeros(2, 3), torch.ones(4)
    reference = weights_digest({"a": a, "b": b})
    assert weights_digest([("b", b), ("a", a)]) == reference
    others = (
        {"a": a, "c": b},
        {"a": a.reshape(3, 2), "b": b},
        {"a": a.int(), "b": b},
        {"a": -a, "b": b},
        {"a": b, "b": a},
        {"a": a},
    )
    assert len({reference, *map(weights_digest, others)}) == len(others) + 1


def test_layout_does_not_matter() -> None:
    x = torch.randn(2, 3, 4, 4)
    same = x.contiguous(memory_format=torch.channels_last)
    assert same.stride() != x.stride()
    assert tensor_bytes(same) == tensor_bytes(x)


class Stateful(nn.Linear):
    """Keeps something in its state_dict that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}


def test_a_model_is_its_parameters_and_buffers() -> None:
    model = nn.Sequential(Stateful(3, 2), nn.BatchNorm1d(2))
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    before = model_digest(model)
    assert before == documented({name: tensor.detach() for name, tensor in tensors.items()})
    model[1].num_batches_tracked += 1
    assert model_digest(model) != before
