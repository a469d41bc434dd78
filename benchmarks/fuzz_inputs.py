"""What the fuzzing campaign feeds: one valid input of each form, and ways to spoil it."""

from __future__ import annotations

import tempfile
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import inspect

from esper_events.certificate import Role, certify
from esper_events.checkpoint import Checkpoint, parse_checkpoint, write_checkpoint
from esper_events.codec import encode_event
from esper_events.events import Event, PlateauDetected, RunStarted
from esper_events.export import export_run
from esper_events.framing import JOURNAL, frame
from esper_events.keys import SigningKey
from esper_events.merkle import MerkleTree
from esper_events.prove import prove_event, prove_growth
from esper_events.registry import REGISTRY_CODEC, JobSubmitted, RegistryBegun, RegistryEvent
from esper_events.revocation import revoke
from esper_events.segment import GENESIS, seal, segment_hash

KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
LOG = "fuzz"


def _example(kind: inspect.Type) -> object:
    """Some value of a field's type, spelt as MessagePack has it."""
    match kind:
        case inspect.LiteralType(values=values):
            return values[0]
        case inspect.EnumType(cls=cls):
            return next(iter(cls)).value
        case inspect.DictType(value_type=value):
            return {"a": _example(value), "b/c": _example(value)}
        case inspect.VarTupleType(item_type=item):
            return [_example(item), _example(item)]
        case inspect.UnionType(types=types):
            return _example(types[0])
        case inspect.StructType(fields=fields, tag_field=tag_field, tag=tag):
            own = {tag_field: tag} if tag_field else {}
            return own | {field.encode_name: _example(field.type) for field in fields}
        case inspect.BytesType():
            return b"some bytes"
        case inspect.BoolType():
            return True
        case inspect.IntType():
            return 1000
        case inspect.FloatType():
            return -0.1
        case inspect.StrType():
            return "some text"
        case _:
            raise NotImplementedError(kind)


EVENTS = [
    encode_event(msgspec.convert(_example(inspect.type_info(kind)), kind))
    for kind in typing.get_args(Event)
]
"""One event of every kind."""
ENTRIES = [
    REGISTRY_CODEC.encode(msgspec.convert(_example(inspect.type_info(kind)), kind))
    for kind in typing.get_args(RegistryEvent)
]
"""One event of every kind that a registry has."""
ROOT = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))
CERTIFICATE = certify(ROOT, KEY.public, Role.TRAINER)
REVOCATION = revoke(ROOT, KEY.public, LOG, 3)
STARTED = encode_event(
    RunStarted(
        time=0.0,
        run=LOG,
        trainer_key=KEY.public.raw,
        host_weights="",
        config="",
        seed=0,
        version="",
        platform={},
        certificate=CERTIFICATE,
    )
)
_MEASURED = typing.get_args(Event).index(PlateauDetected)
BEGINNING = (STARTED, *EVENTS[_MEASURED : _MEASURED + 3])
"""Events that a log may begin with: the genesis, and measurements."""
ENDING = EVENTS[_MEASURED : _MEASURED + 2]
FIRST = seal(BEGINNING, log=LOG, first_index=0, previous=GENESIS, key=KEY)
SECOND = seal(ENDING, log=LOG, first_index=len(BEGINNING), previous=segment_hash(FIRST), key=KEY)
BEGUN = REGISTRY_CODEC.encode(RegistryBegun(time=0.0, writer=KEY.public.raw))
SUBMITTED = REGISTRY_CODEC.encode(
    JobSubmitted(
        time=0.0,
        job="job",
        config="",
        directory="",
        seed=0,
        ack="journal",
        memory=0,
        seconds=0.0,
        attempts=0,
    )
)
JOURNAL_BYTES = frame(FIRST) + frame(SECOND)


def note(events: Sequence[bytes]) -> bytes:
    """The signed checkpoint over ``events``."""
    tree = MerkleTree()
    for event in events:
        tree.append(event)
    return Checkpoint(LOG, tree.size, tree.root()).sign(KEY)


NOTE = note([*BEGINNING, *ENDING])
KEPT = note(BEGINNING)


@dataclass(frozen=True, slots=True)
class Files:
    """What lies in files: an export, an inclusion and a consistency proof, the two halves of a
    key."""

    export: bytes
    proofs: tuple[bytes, bytes]
    public: bytes
    private: bytes


def make_files() -> Files:
    """The files of the run that `FIRST` and `SECOND` make."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        (run / JOURNAL).parent.mkdir()
        (run / JOURNAL).write_bytes(JOURNAL_BYTES)
        write_checkpoint(run, NOTE)
        export_run(run, run / "export")
        KEY.save(run / "key")
        KEY.public.save(run / "key.pub")
        return Files(
            export=(run / "export").read_bytes(),
            proofs=(
                prove_event(run, 2).text(),
                prove_growth(run, parse_checkpoint(KEPT)).text(),
            ),
            public=(run / "key.pub").read_bytes(),
            private=(run / "key").read_bytes(),
        )


_MARKS = (
    # text
    b"", b"\n", b"\r\n", b" ", b"=", b"==", b"\x1b[31m", b"-", b"+", b"0", b"9" * 19,
    b"18446744073709551616", b"\xe2\x80\x94", b"\xed\xa0\x80", b"A" * 44, b"AAAA" * 5000,
    # lengths
    b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0",
    # MessagePack: long spellings, huge collections, nil, a short float, a NaN, deep nesting
    b"\0", b"\xff", b"\x7f", b"\x80", b"\xcc\x05", b"\xd9\x04", b"\xdc\0\x02", b"\xde\xff\xff",
    b"\xdd\xff\xff\xff\xff", b"\xc0", b"\xc1", b"\xca\x7f\xc0\0\0", b"\xcb" + b"\xff" * 8,
    b"\x91" * 2000,
)  # fmt: skip
"""Bytes that mean something to one decoder or another."""


def spoil(random: Random, good: Sequence[bytes]) -> bytes:
    """One of ``good``, or noise, changed in up to six places."""
    data = random.randbytes(random.randrange(80)) if random.random() < 0.02 else random.choice(good)
    for _ in range(random.choice((0, 1, 1, 1, 2, 3, 6))):
        change = random.choice(_CHANGES)
        data = change(random, data, random.choice(good))
    return data


def _flip(random: Random, data: bytes, _other: bytes) -> bytes:
    if not data:
        return data
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def _put(random: Random, data: bytes, _other: bytes) -> bytes:
    """A mark over what is there, or between it."""
    at, mark = random.randrange(len(data) + 1), random.choice(_MARKS)
    return data[:at] + mark + data[at + random.choice((0, 1, len(mark))) :]


def _cut(random: Random, data: bytes, _other: bytes) -> bytes:
    start, end = _range(random, data)
    return data[:start] if random.random() < 0.3 else data[:start] + data[end:]


def _double(random: Random, data: bytes, _other: bytes) -> bytes:
    start, end = _range(random, data)
    return data[:end] + data[start:end] + data[end:]


def _splice(random: Random, data: bytes, other: bytes) -> bytes:
    return data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]


def _lines(random: Random, data: bytes, other: bytes) -> bytes:
    """A line left out, doubled, exchanged with another, or taken from another input."""
    lines, others = data.split(b"\n"), other.split(b"\n")
    one, two = random.randrange(len(lines)), random.randrange(len(lines))
    match random.randrange(4):
        case 0:
            del lines[one]
        case 1:
            lines.insert(two, lines[one])
        case 2:
            lines[one], lines[two] = lines[two], lines[one]
        case _:
            lines[one] = random.choice(others)
    return b"\n".join(lines)


def _range(random: Random, data: bytes) -> tuple[int, int]:
    start = random.randrange(len(data) + 1)
    return start, min(len(data), start + random.choice((1, 2, 4, 8, 32, 64, len(data))))


_CHANGES = (_flip, _flip, _put, _put, _cut, _double, _splice, _lines)
