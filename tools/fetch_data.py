"""Fetches the data that the examples and tests want and that no package brings: Fashion-MNIST.

The files come from Debian's package ``dataset-fashion-mnist`` where ``apt-get`` can download it
(no root needed), else from the original. Each is held to its hash before it is put in place.
Usage: ``python tools/fetch_data.py [DIRECTORY]``, by default ``data``.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import sys
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path

from debian_package import SECONDS, FetchError, unpack

PACKAGE = "dataset-fashion-mnist"
FOLDER = "fashion-mnist"
ORIGINAL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
HASHES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""SHA-256 of what each file unpacks to: compressed, Debian's and the original differ."""
FILES = tuple(f"{name}.gz" for name in HASHES)
MAX_BYTES = 64 * 1024 * 1024


def is_whole(folder: Path) -> bool:
    """Whether all files lie in ``folder`` with the bytes that they should have."""
    return all(_content_hash(folder / f"{name}.gz") == HASHES[name] for name in HASHES)


def _content_hash(path: Path) -> str:
    try:
        with gzip.open(path) as file:
            return hashlib.sha256(file.read(MAX_BYTES)).hexdigest()
    except (OSError, EOFError, zlib.error):
        return ""


def from_debian(place: Path) -> Path:
    """The folder of the files from Debian's package, unpacked in ``place``."""
    unpack(PACKAGE, place)
    return place / "usr/share/datasets" / FOLDER


def from_original(place: Path, address: str = ORIGINAL) -> Path:
    """The folder of the files from the authors' own server, in ``place``."""
    folder = place / FOLDER
    folder.mkdir()
    for name in FILES:
        try:
            with urllib.request.urlopen(f"{address}/{name}", timeout=SECONDS) as answer:
                (folder / name).write_bytes(answer.read(MAX_BYTES))
        except OSError as error:
            raise FetchError(f"{address}/{name}: {error}") from None
    return folder


def fetch(target: Path, ways: tuple[Callable[[Path], Path], ...]) -> str:
    """Put the files into ``target`` by the first way that works; why none did, or nothing."""
    told = []
    for way in ways:
        with tempfile.TemporaryDirectory() as place:
            try:
                found = way(Path(place))
            except FetchError as error:
                told.append(str(error))
                continue
            if is_whole(found):
                target.mkdir(parents=True, exist_ok=True)
                for name in FILES:
                    shutil.copyfile(found / name, target / name)
                return ""
            told.append("fetched, but the files do not have the hashes of Fashion-MNIST")
    return "\n".join(told)


def main() -> int:
    """Fetch what is missing; exit 1 with all reasons when there is no way."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "data") / FOLDER
    if is_whole(target):
        return 0
    problems = fetch(target, (from_debian, from_original))
    if problems:
        print(
            f"fetch_data: Fashion-MNIST could not be fetched\n{problems}\n"
            f"Put {', '.join(FILES)} into {target} yourself, then try again.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
