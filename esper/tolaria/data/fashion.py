"""Fashion-MNIST: 70,000 grey images of 28 x 28 of ten kinds of clothing (Xiao et al., 2017).

Esper ships no data. The four files of the original are looked for where a user says, and where
``make data`` and Debian's package ``dataset-fashion-mnist`` put them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from esper.tolaria.data.idx import IdxError, read_idx
from esper.tolaria.data.parts import Part, Splits, dealt, part
from esper.tolaria.strict import ConfigError

FOLDER = "fashion-mnist"
FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
SIDE = 28
CLASSES = 10
PROBE, CONFIRM = 2000, 4000
"""Rows of the official training set that are held out for the gates."""

MEAN, SPREAD = 0.2860, 0.3530
"""Of the training pixels as fractions of 255: what the images are standardised with."""

DEBIAN = Path("/usr/share/datasets")
_CHECKOUT = Path(__file__).resolve().parents[3] / "data"


def fashion_mnist(path: Path | None = None, examples: int | None = None) -> Splits:
    """The data set from the files in ``path``, or from the first place that has them.

    54,000 / 2,000 / 4,000 rows of the official training set, and the official 10,000 for the
    test; ``examples`` spares the making of more rows to train on. ``x`` is [rows, 1, 28, 28].

    Raises:
        ConfigError: the files are missing or damaged; it says how to get them.
    """
    folder = _folder(path)
    images, labels = _pair(folder, FILES[0], FILES[1])
    held_out, confirmed = PROBE, PROBE + CONFIRM
    if len(labels) <= confirmed:
        raise ConfigError(
            f"{folder / FILES[0]}: got {len(labels)} images, wanted more than {confirmed}"
        )
    probe, confirm, train = np.split(dealt(len(labels)), [held_out, confirmed])
    return Splits(
        train=_part(images, labels, train[:examples]),
        probe=_part(images, labels, probe),
        confirm=_part(images, labels, confirm),
        test=_part(*_pair(folder, FILES[2], FILES[3])),
        classes=CLASSES,
    )


def _folder(path: Path | None) -> Path:
    """The first place that holds the files; only ``path`` is looked at where it is given."""
    if path is not None:
        places = [path]
    else:
        named = os.environ.get("ESPER_DATA")
        roots = [Path(named)] if named else []
        places = [root / FOLDER for root in (*roots, DEBIAN, Path("data"), _CHECKOUT)]
    for place in places:
        if all((place / name).is_file() for name in FILES):
            return place
    key = "data.name" if path is None else "data.path"
    raise ConfigError(
        f"{key}: the files of Fashion-MNIST ({', '.join(FILES)}) are not in "
        f"{' or '.join(map(str, places))}; type 'make data' in a checkout of Esper, install "
        "Debian's package dataset-fashion-mnist, or name their directory in data.path"
    )


def _pair(
    folder: Path, images_name: str, labels_name: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images [rows, 28, 28] and labels [rows], checked against each other."""
    images, labels = _array(folder / images_name, 3), _array(folder / labels_name, 1)
    if images.shape[1:] != (SIDE, SIDE):
        raise ConfigError(
            f"{folder / images_name}: got images of {images.shape[1]} x {images.shape[2]}, wanted "
            f"{SIDE} x {SIDE}"
        )
    if len(images) != len(labels):
        raise ConfigError(f"{folder}: got {len(images)} images and {len(labels)} labels")
    if len(labels) == 0 or labels.max() >= CLASSES:
        raise ConfigError(
            f"{folder / labels_name}: wanted at least one label, all from 0 to {CLASSES - 1}"
        )
    return images, labels


def _array(path: Path, dimensions: int) -> NDArray[np.uint8]:
    try:
        array = read_idx(path)
    except IdxError as error:
        raise ConfigError(f"{path}: {error}; fetch it again ('make data')") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    if array.ndim != dimensions:
        raise ConfigError(f"{path}: got {array.ndim} dimensions, wanted {dimensions}")
    return array


def _part(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], rows: NDArray[np.int64] | None = None
) -> Part:
    if rows is not None:
        images, labels = images[rows], labels[rows]
    x = (images[:, None].astype(np.float32) / np.float32(255) - np.float32(MEAN)) / np.float32(
        SPREAD
    )
    return part(x, labels.astype(np.int64))
