"""A run is trained again, or resumed, on the data that it began with and on no other."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from esper.tolaria.catch_up import CatchUpError
from esper.tolaria.config import parse
from esper.tolaria.data import fashion, load
from esper.tolaria.logged import RerunError, read_run
from esper.tolaria.observer import Silent
from esper.tolaria.trainer import grow, rerun

CONFIG = """
[run]
steps = 20
quick = true
[data]
name = "fashion_mnist"
path = "images"
[model]
kind = "cnn"
channels = [2]
[growth]
max_growths = 0
[quick.run]
steps = 12
"""


def write_images(folder: Path, draw: int) -> None:
    """Some hundred random images in the four files."""
    random = np.random.RandomState(draw)
    folder.mkdir(exist_ok=True)
    for name in fashion.FILES:
        shape = (300, 28, 28) if "images" in name else (300,)
        array = random.randint(0, 10, shape).astype(np.uint8)
        header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
        (folder / name).write_bytes(gzip.compress(header + array.tobytes()))


def test_other_data_is_refused_with_both_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPER_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setattr(fashion, "PROBE", 64)
    monkeypatch.setattr(fashion, "CONFIRM", 48)
    write_images(tmp_path / "images", draw=0)
    config, run_dir = parse(CONFIG, tmp_path), tmp_path / "run"
    grown = grow(config, run_dir=run_dir, nats=None, seed=0, observer=Silent())
    assert grown.steps == 12
    logged = read_run(run_dir)
    digest = load(config.data, tmp_path).digest()
    assert logged.started.platform["data"] == digest
    assert rerun(logged, to=None, directory=tmp_path, observer=Silent()).identical

    write_images(tmp_path / "images", draw=1)
    with pytest.raises(RerunError, match="the data set 'fashion_mnist' is not the one") as error:
        rerun(logged, to=None, directory=tmp_path, observer=Silent())
    assert digest[:12] in str(error.value)
    assert load(config.data, tmp_path).digest()[:12] in str(error.value)
    with pytest.raises(CatchUpError, match="is not the one that the run began with"):
        grow(config, run_dir=run_dir, nats=None, seed=0, observer=Silent(), resume=True)
