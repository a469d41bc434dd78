"""The compiled libraries: built where they can be, loaded, and missed with a remedy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from esper.kasmina import native

CUDA_EXPECTED = shutil.which("nvcc") is not None and os.environ.get("ESPER_CUDA") != "off"
TORCH_LIBRARIES = Path(torch.__file__).parent / "lib"

# Found in libtorch_cuda.so, which the CPU build of torch does not have.
FROM_TORCH_CUDA = {
    "aoti_torch_get_current_cuda_stream",
    "torch_c10_cuda_check_msg",
    "torch_c10_cuda_free_error_msg",
}


def symbols(library: Path, *kind: str) -> set[str]:
    """Names in the dynamic symbol table, without their versions."""
    result = subprocess.run(
        ["nm", "-D", "-j", *kind, str(library)], capture_output=True, text=True, check=True
    )
    return {line.split("@")[0] for line in result.stdout.split()}


def test_cuda_library_is_built_and_links_where_nvcc_is() -> None:
    assert native.CUDA_LIBRARY.is_file() == CUDA_EXPECTED
    libraries = [native.CPU_LIBRARY] + [native.CUDA_LIBRARY] * CUDA_EXPECTED
    offered = symbols(TORCH_LIBRARIES / "libtorch_cpu.so", "--defined-only")
    for library in libraries:
        wanted = {
            name
            for name in symbols(library, "--undefined-only")
            if name.startswith(("aoti_torch_", "torch_"))
        }
        assert wanted
        assert wanted - offered <= FROM_TORCH_CUDA, library


def test_both_libraries_hold_every_operator() -> None:
    schemas = (Path(__file__).parents[2] / "csrc/ops/library.cpp").read_text()
    names = re.findall(r'"(\w+)\(', schemas)
    assert "graft_blend" in names and "slot_stats" in names
    for library in [native.CPU_LIBRARY] + [native.CUDA_LIBRARY] * CUDA_EXPECTED:
        text = library.read_bytes()
        for name in names:
            assert b"\0" + name.encode() + b"\0" in text, (library, name)


def test_no_path_of_the_build_machine_is_kept() -> None:
    for library in native.CPU_LIBRARY.parent.glob("*.so"):
        result = subprocess.run(
            ["readelf", "-d", str(library)], capture_output=True, text=True, check=True
        )
        assert "RPATH" not in result.stdout
        assert "RUNPATH" not in result.stdout


def test_cuda_tensors_are_refused_with_the_reason_where_torch_has_no_cuda() -> None:
    if torch.version.cuda is None:
        with pytest.raises(native.NativeLibraryError, match="this torch has no CUDA; install"):
            native.require_cuda()
    else:
        native.require_cuda()


def test_loading_twice_is_harmless() -> None:
    native.load()
    native.load()


def test_a_missing_library_is_named_with_its_remedy(tmp_path: Path) -> None:
    missing = tmp_path / "libesper_ops.so"
    with pytest.raises(native.NativeLibraryError, match="got no libesper_ops.so in .*make build"):
        native._load(missing)


def test_a_library_that_does_not_load_is_named_with_its_remedy(tmp_path: Path) -> None:
    broken = tmp_path / "libesper_ops.so"
    broken.write_bytes(b"not a library")
    with pytest.raises(native.NativeLibraryError, match="does not load beside torch .*make build"):
        native._load(broken)
