"""A checkpoint is a C2SP signed note, spelt in one way only."""

from __future__ import annotations

import base64
import hashlib
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_events.checkpoint import (
    MAX_CHECKPOINT_BYTES,
    Checkpoint,
    parse_checkpoint,
    write_checkpoint,
)
from esper_events.errors import CheckpointError
from esper_events.keys import PublicKey, SigningKey

KEY = SigningKey.generate()
ROOT = hashlib.sha256(b"root").digest()
NOTE = Checkpoint("run-1", 42, ROOT).sign(KEY)


def open_note(note: str, name: str, key: PublicKey) -> str:
    """The signed text of a note, read as c2sp.org/signed-note says, independently of ours."""
    text, _, signatures = note.rpartition("\n\n")
    text += "\n"
    for line in signatures.splitlines():
        dash, signer, encoded = line.split(" ")
        data = base64.b64decode(encoded)
        hint = hashlib.sha256(f"{name}\n".encode() + b"\x01" + key.raw).digest()[:4]
        if (dash, signer, data[:4]) == ("—", name, hint) and key.verify(data[4:], text.encode()):
            return text
    raise ValueError("no good signature")


def test_the_reader_of_this_test_reads_the_reference_note_of_gos_sumdb() -> None:
    vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    text = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n"
    )
    signature = (
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXg"
        "KvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    )
    name, _, key = vkey.split("+", 2)
    assert open_note(f"{text}\n{signature}", name, PublicKey(base64.b64decode(key)[1:])) == text


def test_a_checkpoint_is_a_signed_note_of_three_lines() -> None:
    text = open_note(NOTE.decode(), "esper/run-1", KEY.public)
    assert text == f"esper/run-1\n42\n{base64.b64encode(ROOT).decode()}\n"


@given(
    st.from_regex(r"[A-Za-z0-9._/-]{1,128}", fullmatch=True),
    st.integers(1, 2**62),
    st.binary(min_size=32, max_size=32),
)
def test_what_is_signed_is_read_back(log: str, size: int, root: bytes) -> None:
    checkpoint = Checkpoint(log, size, root)
    note = checkpoint.sign(KEY)
    signed = parse_checkpoint(note)
    assert signed.checkpoint == checkpoint
    assert signed.note() == note
    assert len(note) <= MAX_CHECKPOINT_BYTES
    assert signed.is_signed_by(KEY.public)
    assert not signed.is_signed_by(SigningKey.generate().public)


@pytest.mark.parametrize(
    "checkpoint",
    [
        Checkpoint("", 1, ROOT),
        Checkpoint("a b", 1, ROOT),
        Checkpoint("a\nb", 1, ROOT),
        Checkpoint("r", 0, ROOT),
        Checkpoint("r", -1, ROOT),
        Checkpoint("r", 10**19, ROOT),
        Checkpoint("r", 1, ROOT[:31]),
        Checkpoint("r", 1, ROOT + b"\0"),
    ],
)
def test_what_could_not_be_read_back_is_not_signed(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError):
        checkpoint.sign(KEY)


def test_every_flip_and_every_cut_is_refused_or_loses_its_signature() -> None:
    spoilt = [NOTE[:length] for length in range(len(NOTE))]
    for bit in range(len(NOTE) * 8):
        flipped = bytearray(NOTE)
        flipped[bit // 8] ^= 1 << bit % 8
        spoilt.append(bytes(flipped))
    parsed = 0
    for note in spoilt:
        try:
            assert not parse_checkpoint(note).is_signed_by(KEY.public)
            parsed += 1
        except CheckpointError:
            pass
    assert parsed > 100  # flips in size, root and signature read well and fail the signature


@pytest.mark.parametrize(
    "note",
    [
        b"",
        NOTE + b"\n",
        NOTE + NOTE.splitlines(keepends=True)[-1],
        NOTE.replace(b"\n42\n", b"\n042\n"),
        NOTE.replace(b"\n42\n", b"\n+42\n"),
        NOTE.replace(b"\n42\n", "\n\uff14\uff12\n".encode()),
        NOTE.replace(b"\n", b"\r\n"),
        NOTE.replace(b"=\n", b"\n"),
        NOTE.replace("— esper/run-1".encode(), "— esper/run-2".encode()),
        b"x" * (MAX_CHECKPOINT_BYTES + 1),
        b"\xff",
    ],
)
def test_other_spellings_are_refused(note: bytes) -> None:
    with pytest.raises(CheckpointError):
        parse_checkpoint(note)


@given(st.binary(max_size=300))
def test_noise_raises_only_the_declared_error(noise: bytes) -> None:
    with pytest.raises(CheckpointError):
        parse_checkpoint(noise)


def test_a_checkpoint_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, NOTE)
    newer = Checkpoint("run-1", 43, ROOT).sign(KEY)
    write_checkpoint(tmp_path, newer)
    path = tmp_path / "checkpoint"
    assert path.read_bytes() == newer
    assert stat.S_IMODE(path.stat().st_mode) & 0o444
    assert list(tmp_path.iterdir()) == [path]
