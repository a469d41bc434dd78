"""What a grown model knows of its own growth: one record for each grafted seed.

A record is plain data and travels with the weights: in the ``state_dict`` as a tensor of bytes,
in a file of ``esper.save`` as text. From it alone the seed's body can be built again.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import torch
from msgspec import UNSET, UnsetType
from torch import Tensor

from esper.kasmina.errors import KasminaError
from esper.kasmina.signature import Slot
from esper_events.events import SlotDeclared

MAX_RECORD_BYTES = 256 * 1024
"""A longer record is refused before it is decoded."""

Path = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
Axis = Annotated[int, msgspec.Meta(ge=0, lt=16)]
Shape = Annotated[
    tuple[Annotated[int, msgspec.Meta(ge=1)], ...], msgspec.Meta(min_length=1, max_length=16)
]

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
}


class RecordError(KasminaError):
    """Bytes that are no record of a grafted seed."""


class GrowthRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One grafted seed: its number, its slot, and the recipe of its body.

    ``start`` and ``end`` are dotted module paths, shapes are per example and axes count in them,
    ``blueprint`` is the canonical text of the blueprint, ``order`` is higher than that of any seed
    that was there before, ``trial`` tells whether the seed was still being tested. ``batch_axis``
    and ``outputs`` are those of the slot and stand there only where they are not 0.
    """

    seed: Annotated[int, msgspec.Meta(ge=0)]
    source: Literal["output", "span"]
    start: Path
    end: Path
    in_shape: Shape
    in_axis: Axis
    out_shape: Shape
    out_axis: Axis
    dtype: Literal["float32", "float64", "bfloat16", "float16"]
    blueprint: str
    batch_axis: Literal[1] | UnsetType = UNSET
    outputs: Annotated[int, msgspec.Meta(ge=1, le=64)] | UnsetType = UNSET
    order: Annotated[int, msgspec.Meta(ge=0)] = 0
    trial: bool = False

    @property
    def slot(self) -> str:
        """The id of the slot."""
        return self.end if self.source == "output" else f"{self.start}..{self.end}"

    def same_growth(self, other: GrowthRecord) -> bool:
        """Whether both tell of the same blueprint in the same slot."""
        return msgspec.structs.replace(other, order=self.order, trial=self.trial) == self

    def encode(self) -> bytes:
        """The one text that stands for this record."""
        return msgspec.json.encode(self, order="sorted")

    def slot_on(self, device: torch.device) -> Slot:
        """The slot as a host on ``device`` has it."""
        return Slot(
            id=self.slot,
            dtype=DTYPES[self.dtype],
            device=device,
            batch_axis=self.batch_axis or 0,
            outputs=self.outputs or 0,
            **_geometry(self),
        )


def record_of(number: int, slot: Slot, blueprint: bytes, order: int) -> GrowthRecord:
    """The record of seed ``number``, whose body was built from the canonical ``blueprint``."""
    return GrowthRecord(
        seed=number,
        dtype=str(slot.dtype).removeprefix("torch."),  # type: ignore[arg-type]
        blueprint=blueprint.decode(),
        batch_axis=1 if slot.batch_axis else UNSET,
        outputs=slot.outputs or UNSET,
        order=order,
        **_geometry(slot),
    )


def _geometry(place: Slot | GrowthRecord) -> dict[str, Any]:
    """What a log declares of a slot, its id aside."""
    names = (name for name in SlotDeclared.__struct_fields__ if name != "id")
    return {name: getattr(place, name) for name in names}


def decode_record(data: bytes) -> GrowthRecord:
    """The record that ``data`` encodes.

    Raises:
        RecordError: ``data`` is anything else, the same record written in another way included.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise RecordError(f"got {len(data)} bytes, wanted at most {MAX_RECORD_BYTES}")
    try:
        record = msgspec.json.decode(data, type=GrowthRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(str(error)) from None
    if record.encode() != data:
        raise RecordError("the bytes are not in canonical form")
    return record


def as_tensor(record: GrowthRecord | None) -> Tensor:
    """The record's bytes, uint8 of one dimension; empty where there is none."""
    data = b"" if record is None else record.encode()
    return torch.tensor(list(data), dtype=torch.uint8)


def from_tensor(tensor: object) -> GrowthRecord:
    """The record that :func:`as_tensor` wrote.

    Raises:
        RecordError: it did not write ``tensor``.
    """
    if not isinstance(tensor, Tensor) or tensor.dtype is not torch.uint8 or tensor.dim() != 1:
        raise RecordError("wanted a uint8 tensor of one dimension")
    if len(tensor) > MAX_RECORD_BYTES:
        raise RecordError(f"got {len(tensor)} bytes, wanted at most {MAX_RECORD_BYTES}")
    return decode_record(bytes(tensor.tolist()))
