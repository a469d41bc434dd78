"""``make data``: only the true bytes are put in place, and who has no way to them is told."""

from __future__ import annotations

import functools
import gzip
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import fetch_data


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Two small files in the place of the real ones."""
    contents = {"images": b"pixels" * 100, "labels": b"classes"}
    hashes = {name: fetch_data.hashlib.sha256(c).hexdigest() for name, c in contents.items()}
    monkeypatch.setattr(fetch_data, "HASHES", hashes)
    monkeypatch.setattr(fetch_data, "FILES", tuple(f"{name}.gz" for name in contents))
    return contents


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server, and the directory that it shows."""
    shown = tmp_path / "shown"
    shown.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(shown))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", shown
        running.shutdown()


def show(folder: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))


def test_whole_files_are_put_in_place(
    tmp_path: Path, wanted: dict[str, bytes], server: tuple[str, Path]
) -> None:
    address, shown = server
    show(shown, wanted)
    target = tmp_path / "data" / "fashion-mnist"
    assert not fetch_data.is_whole(target)
    way = functools.partial(fetch_data.from_original, address=address)
    assert fetch_data.fetch(target, (way,)) == ""
    assert fetch_data.is_whole(target)
    assert gzip.decompress((target / "labels.gz").read_bytes()) == b"classes"
    (target / "labels.gz").write_bytes(gzip.compress(b"others"))
    assert not fetch_data.is_whole(target)


def test_other_bytes_are_not(
    tmp_path: Path, wanted: dict[str, bytes], server: tuple[str, Path]
) -> None:
    address, shown = server
    show(shown, {**wanted, "labels": b"other classes"})
    target = tmp_path / "data"
    way = functools.partial(fetch_data.from_original, address=address)
    assert "do not have the hashes" in fetch_data.fetch(target, (way,))
    (shown / "labels.gz").unlink()
    told = fetch_data.fetch(target, (way, way))
    assert told.count("404") == 2
    assert not target.exists()
