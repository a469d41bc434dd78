"""A thin driver: CMake (with Ninja) builds what CMakeLists.txt lists, setuptools packs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

from find_torch import torch_dir  # noqa: E402

LIBRARIES = "libesper_ops*.so"


class CMakeBuild(build_ext):
    """Runs CMake once; the one extension that setuptools knows stands for all libraries."""

    def run(self) -> None:
        torch = torch_dir()
        if torch is None:
            sys.exit("esper: no torch of 2.11 or later found; install it, or set ESPER_TORCH_DIR")
        build = Path(self.build_temp).resolve()
        libraries = build / "lib"
        shutil.rmtree(libraries, ignore_errors=True)
        self.cmake("-S", str(ROOT), "-B", str(build), *self.definitions(torch, libraries))
        self.cmake("--build", str(build), "--parallel", os.environ.get("MAX_JOBS", "2"))
        extension = Path(self.get_ext_fullpath("esper.kasmina._lattice")).resolve()
        extension.parent.mkdir(parents=True, exist_ok=True)
        for stale in extension.parent.glob(LIBRARIES):
            stale.unlink()
        for library in libraries.iterdir():
            # Under a new name first: a running process keeps the old file.
            fresh = extension.parent / f".{library.name}.new"
            shutil.copy2(library, fresh)
            fresh.replace(extension.parent / library.name)

    def definitions(self, torch: Path, libraries: Path) -> list[str]:
        import pybind11

        return [
            "-GNinja",
            f"-DESPER_TORCH_DIR={torch}",
            f"-DESPER_OUTPUT_DIR={libraries}",
            f"-DESPER_CUDA={os.environ.get('ESPER_CUDA', 'auto')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]

    def cmake(self, *arguments: str) -> None:
        try:
            subprocess.run(["cmake", *arguments], check=True)
        except FileNotFoundError:
            sys.exit("esper: cmake is not on PATH; pip install cmake ninja")
        except subprocess.CalledProcessError as error:
            sys.exit(f"esper: cmake {arguments[0]} failed with status {error.returncode}, see above")

    def get_outputs(self) -> list[str]:
        folder = Path(self.get_ext_fullpath("esper.kasmina._lattice")).parent
        return [str(path) for path in folder.glob("*.so")]


setup(
    ext_modules=[Extension("esper.kasmina._lattice", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
