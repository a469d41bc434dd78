"""A thin driver: CMake (with Ninja) builds what CMakeLists.txt lists, setuptools packs it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

from find_torch import torch_dir  # noqa: E402

LIBRARIES = "libesper_*.so"


class CMakeBuild(build_ext):  # type: ignore[misc]
    """Runs CMake once; the one extension that setuptools knows stands for all libraries."""

    def run(self) -> None:
        torch = torch_dir()
        if torch is None:
            sys.exit(
                "esper: found no torch of 2.11 or later to build against; install one, or set "
                "ESPER_TORCH_DIR to its folder"
            )
        build = build_dir(torch)
        libraries = build / "lib"
        shutil.rmtree(libraries, ignore_errors=True)
        self.cmake("-S", str(ROOT), "-B", str(build), *self.definitions(torch, libraries))
        self.cmake("--build", str(build), "--parallel", os.environ.get("MAX_JOBS", "2"))
        target = self.target_folder()
        target.mkdir(parents=True, exist_ok=True)
        for stale in target.glob(LIBRARIES):
            stale.unlink()
        for library in libraries.iterdir():
            # Under a new name first: a running process keeps the old file.
            fresh = target / f".{library.name}.new"
            shutil.copy2(library, fresh)
            fresh.replace(target / library.name)

    def target_folder(self) -> Path:
        if self.inplace or self.editable_mode:
            return ROOT / "esper" / "kasmina"
        return Path(self.build_lib).resolve() / "esper" / "kasmina"

    def definitions(self, torch: Path, libraries: Path) -> list[str]:
        import pybind11

        return [
            "-GNinja",
            # Given each time: under build isolation ninja lies in a folder that lasts one build.
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DESPER_TORCH_DIR={torch}",
            f"-DESPER_OUTPUT_DIR={libraries}",
            f"-DESPER_CUDA={os.environ.get('ESPER_CUDA', 'auto')}",
            f"-DESPER_AUTOGRAD={os.environ.get('ESPER_AUTOGRAD', 'on')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]

    def cmake(self, *arguments: str) -> None:
        try:
            subprocess.run([tool("cmake"), *arguments], check=True)
        except subprocess.CalledProcessError as error:
            sys.exit(
                f"esper: cmake {arguments[0]} failed with status {error.returncode}, see above"
            )

    def get_outputs(self) -> list[str]:
        return [str(path) for path in self.target_folder().glob("*.so")]


def tool(name: str) -> str:
    """The program, first where pip puts it for this interpreter: that one is new enough."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if found is None:
        sys.exit(f"esper: {name} is not on PATH; pip install {name}")
    return found


def build_dir(torch: Path) -> Path:
    """CMake's folder: kept between builds, one for each interpreter environment and torch."""
    key = hashlib.sha256(f"{sys.prefix}\n{torch}".encode()).hexdigest()[:8]
    return ROOT / "build" / f"{sys.implementation.cache_tag}-{key}"


setup(
    ext_modules=[Extension("esper.kasmina._lattice", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
