"""Data sets from files and from text: what is read, what is refused, and how a user is told."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from esper.tolaria.config import ConfigError, DataSettings
from esper.tolaria.data import fashion, load
from esper.tolaria.data.characters import BLOCK_WINDOWS, UNKNOWN, reference, split_text
from esper.tolaria.data.fashion import FILES, fashion_mnist
from esper.tolaria.data.idx import MAX_BYTES, IdxError, parse_idx, read_idx


def idx(array: NDArray[np.uint8]) -> bytes:
    """An array of bytes in the IDX format."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def packed(content: bytes) -> bytes:
    """The same bytes at any time."""
    return gzip.compress(content, mtime=0)


def write_fashion(folder: Path, rows: int = 20, draw: int = 0) -> Path:
    """The four files with random images, as many to train on and to test with."""
    random = np.random.RandomState(draw)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shape = (rows, 28, 28) if "images" in name else (rows,)
        top = 256 if "images" in name else 10
        content = idx(random.randint(0, top, shape).astype(np.uint8))
        (folder / name).write_bytes(packed(content))
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are held out, so that few are needed."""
    monkeypatch.setattr(fashion, "PROBE", 4)
    monkeypatch.setattr(fashion, "CONFIRM", 6)


SHAPES = st.lists(st.integers(0, 6), min_size=1, max_size=4)


@given(SHAPES)
def test_an_array_survives_the_format(shape: list[int]) -> None:
    array = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    assert np.array_equal(parse_idx(idx(array)), array)
    assert parse_idx(idx(array)).shape == tuple(shape)


@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda tail: b"\0\0\x08\x02" + tail))
def test_any_bytes_are_an_array_or_one_line(content: bytes) -> None:
    told = ""
    try:
        assert idx(parse_idx(content)) == content
    except IdxError as error:
        told = str(error)
    assert len(told.splitlines()) <= 1


@given(SHAPES, st.data())
def test_a_changed_length_is_refused(shape: list[int], data: st.DataObject) -> None:
    content = idx(np.zeros(shape, dtype=np.uint8))
    cut = data.draw(st.integers(0, len(content) - 1))
    for wrong in (content[:cut], content + b"\0"):
        with pytest.raises(IdxError):
            parse_idx(wrong)


def test_what_is_no_gzip_is_told(tmp_path: Path) -> None:
    whole = gzip.compress(idx(np.arange(200, dtype=np.uint8)))
    path = tmp_path / "x.gz"
    for content in (b"", b"plain", whole[:-3], whole[:40], whole[:50] + b"x" + whole[51:]):
        path.write_bytes(content)
        with pytest.raises(IdxError):
            read_idx(path)
    path.write_bytes(gzip.compress(bytes(MAX_BYTES + 1), compresslevel=1))
    with pytest.raises(IdxError, match="got more than 67108864 bytes"):
        read_idx(path)


def test_fashion_mnist_is_whole() -> None:
    splits = load(DataSettings(name="fashion_mnist"))
    parts = (splits.train, splits.probe, splits.confirm, splits.test)
    assert [len(part.y) for part in parts] == [54_000, 2_000, 4_000, 10_000]
    assert splits.train.x.shape[1:] == (1, 28, 28)
    assert (splits.train.x.dtype, splits.train.y.dtype) == (torch.float32, torch.int64)
    counts = sum(torch.bincount(part.y) for part in parts[:3])
    assert counts.tolist() == [6_000] * 10
    assert torch.bincount(splits.test.y).tolist() == [1_000] * 10
    pixels = torch.cat([part.x.flatten() for part in parts[:3]])
    assert float(pixels.mean()) == pytest.approx(0.0, abs=1e-3)
    assert float(pixels.std()) == pytest.approx(1.0, abs=1e-3)
    short = load(DataSettings(name="fashion_mnist", examples=1000))
    assert torch.equal(short.train.x, splits.train.x[:1000])
    assert torch.equal(short.confirm.x, splits.confirm.x)


@pytest.mark.usefixtures("small")
def test_the_parts_share_no_image_and_are_the_files_rows(tmp_path: Path) -> None:
    folder = write_fashion(tmp_path)
    splits = fashion_mnist(folder)
    rows = {
        row.numpy().tobytes() for p in (splits.train, splits.probe, splits.confirm) for row in p.x
    }
    assert len(rows) == 20
    images = read_idx(folder / FILES[2]).astype(np.float64)
    expected = (images / 255 - 0.2860) / 0.3530
    assert np.allclose(splits.test.x[:, 0].numpy(), expected, atol=1e-5)
    assert splits.test.y.tolist() == read_idx(folder / FILES[3]).tolist()


@pytest.mark.usefixtures("small")
def test_the_files_are_found_where_a_user_puts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, local, debian = tmp_path / "named", tmp_path / "local", tmp_path / "debian"
    monkeypatch.setattr(fashion, "DEBIAN", debian)
    monkeypatch.setattr(fashion, "_CHECKOUT", tmp_path / "none")
    monkeypatch.setenv("ESPER_DATA", str(named))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="type 'make data'") as told:
        fashion_mnist()
    assert str(named) in str(told.value)
    assert len(str(told.value).splitlines()) == 1
    digests = []
    for number, root in enumerate((tmp_path / "data", debian, named)):  # the later comes first
        write_fashion(root / "fashion-mnist", draw=number)
        digests.append(fashion_mnist().digest())
    assert len(set(digests)) == 3
    write_fashion(local / "mine", draw=9)
    chosen = DataSettings(name="fashion_mnist", path="mine")
    assert load(chosen, local).digest() not in digests
    with pytest.raises(ConfigError, match=r"data\.path: the files of Fashion-MNIST"):
        load(chosen, tmp_path)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        (0, packed(b"abc"), "got 3 bytes, wanted a header .* fetch it again"),
        (0, b"abc", "not a whole gzip file"),
        (0, packed(idx(np.zeros((20, 27, 28), np.uint8))), "got images of 27 x 28, wanted"),
        (0, packed(idx(np.zeros((10, 28, 28), np.uint8))), "got 10 images and 20 labels"),
        (1, packed(idx(np.zeros((20, 1), np.uint8))), "got 2 dimensions, wanted 1"),
        (3, packed(idx(np.full(20, 10, np.uint8))), "wanted at least one label, all from 0"),
    ],
)
def test_damaged_files_are_told_in_one_line(
    tmp_path: Path, file: int, content: bytes, line: str
) -> None:
    folder = write_fashion(tmp_path)
    (folder / FILES[file]).write_bytes(content)
    with pytest.raises(ConfigError, match=line) as error:
        fashion_mnist(folder)
    assert len(str(error.value).splitlines()) == 1


def test_too_few_images_to_hold_any_out_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got 20 images, wanted more than 6000"):
        fashion_mnist(write_fashion(tmp_path))


def test_the_reference_has_each_paragraph_once() -> None:
    paragraphs = reference().split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs)
    assert sum(map(len, paragraphs)) > 250_000


@pytest.mark.parametrize("window", [16, 64])
def test_the_next_character_is_asked_for_at_each_position(window: int) -> None:
    splits = load(DataSettings(name="characters", window=window))
    for part in (splits.train, splits.probe, splits.confirm, splits.test):
        assert part.x.dtype == part.y.dtype == torch.int64
        assert part.x.shape == part.y.shape == (len(part.x), window)
        assert torch.equal(part.x[:, 1:], part.y[:, :-1])
        assert int(part.y.max()) < splits.classes
    assert UNKNOWN not in splits.train.x
    assert set(splits.train.x.flatten().tolist()) | set(splits.train.y[:, -1].tolist()) == set(
        range(1, splits.classes)
    )
    assert load(DataSettings(name="characters", window=window)).digest() == splits.digest()


def test_no_character_is_in_two_parts_and_strange_ones_are_unknown() -> None:
    length = 4 * BLOCK_WINDOWS + 1
    text = "".join(chr(0x4E00 + i) for i in range(20 * length))  # every character once
    splits = split_text(text, 4)
    assert splits.classes == 1 + length * (len(splits.train.x) // BLOCK_WINDOWS)
    for part in (splits.probe, splits.confirm, splits.test):
        assert int(part.x.max()) == int(part.y.max()) == UNKNOWN
    rows = sum(len(part.x) for part in (splits.train, splits.probe, splits.confirm, splits.test))
    assert rows == 20 * BLOCK_WINDOWS
    with pytest.raises(ValueError, match="wanted at least"):
        split_text(text[: 3 * length], 4)
