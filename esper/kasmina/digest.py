"""Canonical digests of tensors: the same bits give the same name, on any machine."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def tensor_bytes(tensor: Tensor) -> bytes:
    """The elements of ``tensor`` in row-major order as stored, little-endian."""
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def weights_digest(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 in hex over named tensors in canonical form.

    For every tensor in the order of its name: the name, the dtype (``float32``) and the shape
    (``64,8``), each as UTF-8 behind its length as a 4-byte big-endian number, then the
    elements' bytes behind their length as an 8-byte big-endian number.
    """
    entries = tensors.items() if isinstance(tensors, Mapping) else tensors
    digest = hashlib.sha256()
    for name, tensor in sorted(entries, key=lambda entry: entry[0]):
        shape = ",".join(str(size) for size in tensor.shape)
        for text in (name, str(tensor.dtype).removeprefix("torch."), shape):
            raw = text.encode()
            digest.update(struct.pack(">I", len(raw)) + raw)
        body = tensor_bytes(tensor)
        digest.update(struct.pack(">Q", len(body)) + body)
    return digest.hexdigest()


def tensor_digests(model: nn.Module) -> dict[str, str]:
    """:func:`weights_digest` of each tensor of the model's ``state_dict`` alone, by name."""
    return {name: weights_digest({name: value}) for name, value in _tensors(model).items()}


def model_digest(model: nn.Module) -> str:
    """:func:`weights_digest` over the tensors of the model's ``state_dict``."""
    return weights_digest(_tensors(model))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
